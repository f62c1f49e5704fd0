"""Garbage collection pauses while code is imported, and leaves out what is there afterwards."""

import subprocess
import sys

import pytest

SCRIPT = """
import gc
from inference.interface.collector import keeping_all
assert gc.isenabled() and gc.get_freeze_count() == 0
try:
    with keeping_all():
        assert not gc.isenabled()
        import xml.dom.minidom
        {end}
except ImportError:
    pass
assert gc.isenabled() and gc.get_freeze_count() > 1000
"""


@pytest.mark.parametrize("end", ["pass", "raise ImportError"])
def test_what_is_made_in_the_block_is_frozen(end: str) -> None:
    """In a process of its own, because a process cannot tell which frozen objects are new."""
    subprocess.run([sys.executable, "-c", SCRIPT.format(end=end)], check=True)


@pytest.mark.parametrize("module", ["worker", "standing_worker", "follower"])
def test_a_worker_imports_torch_without_collecting(module: str) -> None:
    script = (
        "import gc, sys; phases = []; gc.callbacks.append(lambda phase, info: phases.append(phase));"
        f"import inference.{module}; assert 'torch' in sys.modules;"
        "print(phases.count('start'), gc.get_freeze_count())"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    collections, frozen = map(int, shown.split())
    assert collections < 100  # otherwise almost a thousand
    assert frozen > 100_000

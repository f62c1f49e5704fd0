"""Kernels that were compiled in advance run without a compiler. In processes of their own: torch loads the
kernels only once.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inference.backends.cpu import build
from inference.backends.cpu.levels import features_of_processor, fitting_levels

_RUN = """
from pathlib import Path
import torch
from inference.backends.cpu import build
build._SHIPPED = Path("compiled")
build.load(Path("cache"))
x, linear = torch.randn(3, 64), torch.classes.tiller_cpu.Linear(torch.randn(32, 64), None)
print(torch.allclose(torch.ops.tiller_cpu.linear(x, linear), x @ linear.weight().T, atol=1e-2))
"""


def test_shipped_kernels_need_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    level = next(fitting_levels(features_of_processor()), None)
    if level is None:
        pytest.skip("there is no level for this processor")
    monkeypatch.setattr(build, "_SHIPPED", tmp_path / "compiled")
    build._compile_with(build.find_compiler(), build._shipped(level), level.flags)
    env = {**os.environ, "CXX": str(tmp_path / "missing"), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", _RUN], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout == "True\n", done.stderr
    assert not (tmp_path / "cache").exists()

"""The kernels compile for GPUs that this host need not have, and fit. The interpreter cannot show that."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

_MAX_SHARED = 99 * 1024  # bytes per program, on every GPU with bfloat16 tensor cores
_MAX_SPILLED = 100  # bytes per thread
_KERNELS = {
    "attend_single",
    "attend_chunks",
    "combine",
    "normalize",
    "gate",
    "steer",
    "rotate_and_store",
    "find_highest",
    "weigh",
}


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_fit_into_registers_and_shared_memory(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.inference.backends.cuda.compilation", str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["kernel"] for kernel in compiled} == _KERNELS
    assert [kernel for kernel in compiled if kernel["spilled"] > _MAX_SPILLED] == []
    assert [kernel for kernel in compiled if kernel["shared"] > _MAX_SHARED] == []

"""The kernels compile for GPUs that this host need not have, and fit. The interpreter cannot show that."""

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

pytest.importorskip("triton")

_MAX_SHARED = {80: 99 * 1024, 90: 227 * 1024}  # bytes per program
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
    "choose_highest",
    "weigh",
    "invert",
    "find_top",
    "merge_top",
    "start",
    "narrow",
    "cut",
}

capabilities = pytest.mark.parametrize("capability", [80, 90])


@cache
def compiled(capability: int) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.inference.backends.cuda.compilation", str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@capabilities
def test_kernels_fit_into_registers_and_shared_memory(capability: int) -> None:
    kernels = compiled(capability)
    assert {kernel["kernel"] for kernel in kernels} == _KERNELS
    assert [kernel for kernel in kernels if kernel["spilled"] > _MAX_SPILLED] == []
    assert [kernel for kernel in kernels if kernel["shared"] > _MAX_SHARED[capability]] == []


@capabilities
def test_keys_and_values_are_copied_while_the_kernel_computes(capability: int) -> None:
    attention = [kernel for kernel in compiled(capability) if kernel["kernel"].startswith("attend")]
    buffered = [kernel for kernel in attention if kernel["stages"] > 2]
    assert {kernel["kernel"] for kernel in buffered} == {"attend_single", "attend_chunks"}
    assert [kernel for kernel in buffered if kernel["pending"] < 2] == []


@capabilities
def test_no_batch_compiles_a_kernel_after_the_start(capability: int) -> None:
    assert [kernel for kernel in compiled(capability) if kernel["serving"]] == []

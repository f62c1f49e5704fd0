"""The kernels of layers with FP8 weights compile for Ada and Hopper, and once for all numbers of tokens."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

pytest.importorskip("triton")

_MAX_SHARED = 99 * 1024  # bytes per program, on Ada; Hopper has more
_MAX_SPILLED = 100  # bytes per thread


@pytest.mark.parametrize("capability", [89, 90])
def test_kernels_fit_and_compile_once(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.inference.backends.cuda.fp8_compilation", str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert [kernel for kernel in kernels if kernel["spilled"] > _MAX_SPILLED] == []
    assert [kernel for kernel in kernels if kernel["shared"] > _MAX_SHARED] == []
    assert Counter(kernel["kernel"] for kernel in kernels) == {
        "multiply_blocks": 8,  # four tiles, with and without a block that is not whole
        "quantize_groups": 1,
        "quantize_tokens": 3,  # powers of two
        "quantize_tensor": 1,
    }

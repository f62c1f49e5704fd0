import sys
import time

import psutil
import pytest
import torch

from inference.compute import memory

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [3, MIB])
def test_zeros_can_be_written(dtype: torch.dtype, rows: int) -> None:
    tensor = memory.zeros((rows, 2, 2), dtype, CPU)
    assert tensor.shape == (rows, 2, 2)
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    tensor[-1] += 1
    assert tensor.sum() == 4


@pytest.mark.skipif(sys.platform != "linux", reason="other systems give memory at its first use")
def test_memory_comes_after_the_tensor_and_changes_nothing() -> None:
    before = resident()
    tensor = memory.zeros((128, MIB), torch.uint8, CPU)
    tensor[7, :5] = 3
    assert resident() - before < 32 * MIB
    memory.provide([tensor])
    end = time.monotonic() + 60
    while resident() - before < 120 * MIB:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert tensor.sum() == 15


def resident() -> int:
    """In bytes."""
    return int(psutil.Process().memory_info().rss)

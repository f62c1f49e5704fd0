"""Tests of the Triton kernels: compiled with TEST_DEVICE=cuda, else run by Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton")


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def like(request: pytest.FixtureRequest) -> torch.Tensor:
    """A tensor with the dtype and on the device to compute with."""
    like = torch.empty(0, dtype=request.param)
    if like.dtype == torch.bfloat16 and like.device.type == "cpu":
        pytest.skip("the interpreter does not support bfloat16")
    return like

"""Weighing in one operation, against torch's."""

import pytest
import torch

from inference import sampler
from inference.cpu import sampling


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("size", [1, 199, 256, 1000, 49152])
def test_it_weighs_as_torch_does(rows: int, size: int) -> None:
    torch.manual_seed(size)
    logits = torch.randn(rows, size) * 10
    logits[:, ::7] = -torch.inf  # banned
    logits[:, 0] = 1.0
    temperature = torch.rand(rows, 1) * 2 + 0.01
    ours, theirs = logits.clone(), logits.clone()
    highest, sums = sampling.weigh(ours, temperature, 256)
    expected_highest, expected_sums = sampler.weigh(theirs, temperature, 256)
    assert torch.equal(highest, expected_highest)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-37)
    assert (ours[logits.isinf()] == 0).all()
    assert sums.dtype == torch.float64
    assert torch.allclose(sums, expected_sums, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_row_is_told(broken: float) -> None:
    logits = torch.randn(3, 600)
    logits[1, 300] = broken
    highest, _ = sampling.weigh(logits, torch.ones(3, 1), 256)
    assert highest.isfinite().tolist() == [True, False, True]


def test_a_row_without_anything_to_draw_is_told() -> None:
    highest, _ = sampling.weigh(torch.full((1, 300), -torch.inf), torch.ones(1, 1), 256)
    assert not highest.isfinite().any()


def test_tiny_temperatures_leave_the_highest() -> None:
    logits = torch.randn(2, 500)
    _, sums = sampling.weigh(logits, torch.full((2, 1), 1e-5), 256)
    assert torch.equal(sums.sum(-1), torch.ones(2, dtype=torch.float64))

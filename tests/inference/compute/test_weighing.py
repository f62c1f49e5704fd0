"""The `weigh` kernels of the back ends give what the torch operation gives."""

import pytest
import torch

from inference.compute.sampling.operations import Weigh
from inference.compute.sampling.operations import weigh as torch_weigh
from tests.inference.compute.sampling.conftest import load_kernels, random_numbers

Kernel = tuple[Weigh, torch.device]

not_finite = pytest.mark.filterwarnings("ignore:(invalid value|All-NaN):RuntimeWarning")
"""Warnings by Triton's interpreter for values that are not finite."""


@pytest.fixture(params=["cpu", "cuda"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """A `weigh` kernel, and the device it runs on."""
    operations, device = load_kernels(request.param)
    return operations.weigh, device


def tolerances(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """The relative error [R, N] of e^x that float32 permits at the arguments x that the logits give.

    An absolute error of x is a relative error of e^x. Kernels divide with an error of 2 units in the last
    place (div.full.f32 of PTX), which is |x| * 2^-22. They compute 2^(x * log2(e)), and rounding of log2(e)
    and of the product adds |x| * 2^-23. The power itself has an error of a few units in the last place.
    """
    arguments = ((logits - logits.amax(-1, keepdim=True)) / temperature).double()
    return 2.0**-23 * (3 * arguments.abs() + 8)


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 199), (1, 256), (40, 1000), (1, 49152), (2, 49152)])
def test_the_kernel_gives_what_torch_gives(kernel: Kernel, rows: int, size: int) -> None:
    weigh, device = kernel
    logits = random_numbers(device, rows, size) * 10
    logits[:, ::7] = -torch.inf  # banned
    logits[:, 0] = 1.0
    temperature = random_numbers(device, rows, 1).abs() * 2 + 0.01
    ours, theirs = logits.clone(), logits.clone()
    highest, sums = weigh(ours, temperature, 256)
    expected_highest, expected_sums = torch_weigh(theirs, temperature, 256)
    assert torch.equal(highest, expected_highest)
    relative = tolerances(logits, temperature)
    allowed = theirs.double().nan_to_num() * relative.nan_to_num(posinf=0.0) + 1e-37
    assert ((ours.double() - theirs.double()).abs() <= allowed).all()
    assert (ours[logits.isinf()] == 0).all()
    assert sums.dtype == torch.float64
    pieces = [part.sum(-1) for part in allowed.split(256, dim=-1)]
    assert ((sums - expected_sums).abs() <= torch.stack(pieces, -1)).all()


@not_finite
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_the_highest_logit_of_a_row_with_nan_or_inf_is_not_finite(kernel: Kernel, broken: float) -> None:
    weigh, device = kernel
    logits = random_numbers(device, 3, 600)
    logits[1, 300] = broken
    highest, _ = weigh(logits, torch.ones(3, 1, device=device), 256)
    assert highest.isfinite().tolist() == [True, False, True]


@not_finite
def test_the_highest_logit_of_a_row_without_allowed_tokens_is_not_finite(kernel: Kernel) -> None:
    weigh, device = kernel
    highest, _ = weigh(torch.full((1, 300), -torch.inf, device=device), torch.ones(1, 1, device=device), 256)
    assert not highest.isfinite().any()


def test_a_tiny_temperature_leaves_only_the_highest_logit(kernel: Kernel) -> None:
    weigh, device = kernel
    _, sums = weigh(random_numbers(device, 2, 500), torch.full((2, 1), 1e-5, device=device), 256)
    assert torch.equal(sums.sum(-1).cpu(), torch.ones(2, dtype=torch.float64, device="cpu"))

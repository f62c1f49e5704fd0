"""The `weigh` kernels of the back ends give what the torch operation gives."""

from pathlib import Path

import pytest
import torch

from inference.backends.cpu import build
from inference.backends.cpu import sampling as cpu
from inference.compute import sampler
from inference.compute.sampler import Weigh
from inference.interface.config import EngineConfig

Kernel = tuple[Weigh, torch.device]

not_finite = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
"""A warning by Triton's interpreter for values that are not finite."""


@pytest.fixture(params=["cpu", "cuda"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """A `weigh` kernel, and the device it runs on."""
    if request.param == "cpu":
        build.load(Path(EngineConfig().cache_directory).expanduser())
        return cpu.weigh, torch.device("cpu")
    pytest.importorskip("triton")
    from inference.backends.cuda import sampling as cuda

    return cuda.weigh, torch.get_default_device()


def random(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(shape[-1]), device="cpu").to(
        device
    )


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 199), (1, 256), (40, 1000), (1, 49152), (2, 49152)])
def test_the_kernel_gives_what_torch_gives(kernel: Kernel, rows: int, size: int) -> None:
    weigh, device = kernel
    logits = random(device, rows, size) * 10
    logits[:, ::7] = -torch.inf  # banned
    logits[:, 0] = 1.0
    temperature = random(device, rows, 1).abs() * 2 + 0.01
    ours, theirs = logits.clone(), logits.clone()
    highest, sums = weigh(ours, temperature, 256)
    expected_highest, expected_sums = sampler.weigh(theirs, temperature, 256)
    assert torch.equal(highest, expected_highest)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-37)
    assert (ours[logits.isinf()] == 0).all()
    assert sums.dtype == torch.float64
    assert torch.allclose(sums, expected_sums, rtol=1e-5, atol=1e-30)


@not_finite
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_the_highest_logit_of_a_row_with_nan_or_inf_is_not_finite(kernel: Kernel, broken: float) -> None:
    weigh, device = kernel
    logits = random(device, 3, 600)
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
    _, sums = weigh(random(device, 2, 500), torch.full((2, 1), 1e-5, device=device), 256)
    assert torch.equal(sums.sum(-1).cpu(), torch.ones(2, dtype=torch.float64, device="cpu"))

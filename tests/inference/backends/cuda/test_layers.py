"""The Triton kernels for the operations between matrix products, compared with torch."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the name that everybody uses

from inference.backends.cuda import layers
from inference.steering import injection

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def random(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(sum(shape)), device="cpu").to(
        like
    )


def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def normal(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The RMS norm as transformers' models compute it."""
    numbers = x.float()
    return weight * (numbers * torch.rsqrt(numbers.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


@pytest.mark.parametrize("size", [8, 24, 576])
def test_norm(like: torch.Tensor, size: int) -> None:
    x, residual, weight = random(like, 5, size), random(like, 1, 5, size)[0], random(like, size)
    check(layers.rms_norm(x, weight, 1e-5), normal(x, weight))
    total, actual = layers.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    check(actual, normal(x + residual, weight))


@pytest.mark.parametrize("with_norms", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(4, 2, 8), (3, 1, 12), (2, 2, 64), (32, 8, 128), (9, 3, 64), (8, 4, 256)]
)
def test_rotation(like: torch.Tensor, heads: int, kv_heads: int, size: int, with_norms: bool) -> None:
    qkv, angles = random(like, 5, (heads + 2 * kv_heads) * size), random(like, 1, 5, size)
    parts = qkv.clone().view(5, -1, size).split([heads, kv_heads, kv_heads], 1)
    keys, values = random(like, 20, kv_heads, size), random(like, 19, kv_heads, size)
    slots = torch.tensor([3, 17, 4, 5, 0], device=like.device)
    expected = keys.clone(), values.clone()
    cosines, sines = angles.cos(), angles.sin()
    weights = random(like, 1, size)[0], random(like, 2, size)[1]
    norms = layers.HeadNorms(*weights, 1e-5) if with_norms else None

    def rotate(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = normal(x, weight) if with_norms else x
        first, second = x.chunk(2, -1)
        return x * cosines[0, :, None] + torch.cat([-second, first], -1) * sines[0, :, None]

    queries = layers.rotate_and_store(qkv, cosines, sines, keys, values, slots, norms)
    expected[0][slots], expected[1][slots] = rotate(parts[1], weights[1]), parts[2]
    check(queries, rotate(parts[0], weights[0]))
    check(keys, expected[0])
    assert torch.equal(values, expected[1])


@pytest.mark.parametrize("size", [3, 48, 1025])
def test_gate(like: torch.Tensor, size: int) -> None:
    x = 3 * random(like, 4, 2 * size)
    check(layers.gate(x), F.silu(x[:, :size]) * x[:, size:])


@pytest.mark.parametrize("size", [8, 1030])
def test_steering(like: torch.Tensor, size: int) -> None:
    hidden, vectors = random(like, 4, size), random(torch.empty(0, device=like.device), 3, size)
    hidden[1, :3] = torch.tensor([-0.0, float("inf"), -0.0]).to(like)  # row 0: the bits must stay
    rows = torch.tensor([2, 0, 1, 0], device=like.device)
    expected, before = hidden.clone(), hidden.clone()
    injection.steer(expected, vectors, rows)
    layers.steer(hidden, vectors, rows)
    check(hidden[::2], expected[::2])
    bits = torch.int32 if like.dtype == torch.float32 else torch.int16
    assert torch.equal(hidden[1::2].view(bits), before[1::2].view(bits))


def test_check_passes() -> None:
    layers.check(torch.get_default_device())

"""The Triton kernels of layers with FP8 weights, against torch's operations."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from inference.backends.cuda import fp8
from inference.backends.cuda.fp8 import TRITON
from inference.interface.quantization import Fp8Scheme
from inference.models.fp8.linear import Fp8Linear, ScaleNames
from inference.models.fp8.operations import TORCH, Operations

IS_INTERPRETED = torch.get_default_device().type == "cpu"
TYPES = (torch.float32, torch.float16 if IS_INTERPRETED else torch.bfloat16)  # the interpreter truncates bf16
PRODUCT = {torch.float32: 1e-6 if IS_INTERPRETED else 3e-3, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Largest error, relative to a token's largest output. Tensor cores add FP8 products with few bits."""


@pytest.fixture(autouse=True)
def _rounding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets Triton's interpreter round to FP8 as a GPU does: to the nearest number, and to even ones.

    The interpreter rounds halves up, loses the carry into the exponent, and truncates small numbers.
    """
    if IS_INTERPRETED:
        from triton.runtime import interpreter

        original = interpreter._convert_float

        def convert(numbers: Any, source: Any, target: Any, mode: Any) -> Any:
            if target != tl.float8e4nv:
                return original(numbers, source, target, mode)
            exact = torch.from_numpy(np.ascontiguousarray(numbers)).float()
            return exact.to(torch.float8_e4m3fn).view(torch.uint8).numpy()

        monkeypatch.setattr(interpreter, "_convert_float", convert)
    with torch.inference_mode():
        yield


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(
        torch.get_default_device()
    )


def inputs(rows: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Also with a token of zeros, large and tiny numbers, and halves between two FP8 numbers."""
    x = 3 * normal(rows, size)
    if rows > 4:
        x[1], x[2], x[3] = 0, x[2] * 30, x[3] * 1e-3
        x[4] = torch.arange(size, device=x.device) / 16
        x[4, 0] = 448
    return x.to(dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("rows", "size"), [(1, 16), (7, 320), (130, 4096), (5, 14336)])
def test_inputs_are_rounded_bit_for_bit_as_torch_does(dtype: torch.dtype, rows: int, size: int) -> None:
    x = inputs(rows, size, dtype)
    expected, expected_scales = TORCH.quantize_tokens(x)
    actual, scales = TRITON.quantize_tokens(x)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))
    scale = torch.tensor(0.01)
    expected, actual = (used.quantize_tensor(x, scale) for used in (TORCH, TRITON))
    assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", [1, 5, 17, 65, 200])
@pytest.mark.parametrize("shape", [(192, 320), (256, 128), (16, 272)])
def test_products_with_scales_per_block(dtype: torch.dtype, rows: int, shape: tuple[int, int]) -> None:
    outputs, size = shape
    weight = normal(outputs, size).to(torch.float8_e4m3fn)
    scales = 0.01 + 0.1 * normal(-(-outputs // 128), -(-size // 128)).square()
    x = inputs(rows, size, dtype)
    expected, actual = (used.multiply_blocks(x, weight, scales) for used in (TORCH, TRITON))
    assert actual.dtype == dtype
    errors = (actual - expected).float().abs().amax(-1) / expected.float().abs().amax(-1).clamp_min(1e-12)
    worst = int(errors.argmax())
    assert float(errors.max()) < PRODUCT[dtype], (
        f"token {worst}: {actual[worst, :4]}, not {expected[worst, :4]}"
    )


def make_layer(scheme: Fp8Scheme, dtype: torch.dtype = torch.bfloat16) -> Fp8Linear:
    layer = Fp8Linear(nn.Linear(192, 320, bias=False, dtype=dtype), scheme, ScaleNames())
    layer.weight.copy_(normal(320, 192).to(torch.float8_e4m3fn))
    for name, parameter in layer.named_parameters():
        if "scale" in name:
            parameter.fill_(0.02)
    layer.prepare()
    return layer


SCHEMES = [
    Fp8Scheme("channel", "token"),
    Fp8Scheme("tensor", "token"),
    Fp8Scheme("tensor", "tensor"),
    Fp8Scheme("channel", "tensor"),
    Fp8Scheme("block", "group"),
]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_use_the_kernels(scheme: Fp8Scheme, dtype: torch.dtype) -> None:
    layers = nn.ModuleList(
        [nn.Linear(2, 2, dtype=dtype), make_layer(scheme, dtype), make_layer(scheme, dtype)]
    )
    fp8.accelerate(layers)
    assert all(layer.operations is TRITON for layer in layers[1:])


def test_layers_do_not_use_kernels_that_fail_or_are_wrong(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise RuntimeError("no\nshared memory")

    def quantize_too_large(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return TORCH.quantize_tensor(2 * x, scale)

    monkeypatch.setattr(fp8, "TRITON", Operations(fail, quantize_too_large, TORCH.multiply_blocks))
    layers = nn.ModuleList([nn.Linear(2, 2, dtype=torch.bfloat16), *map(make_layer, SCHEMES)])
    fp8.accelerate(layers)
    assert [layer.operations is TORCH for layer in layers[1:]] == [True, True, True, True, False]
    assert "without Triton kernels for FP8: no shared memory" in caplog.text
    assert "without Triton kernels for FP8: they give another result than torch" in caplog.text


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_launches_two_kernels(scheme: Fp8Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rounds the input, one multiplies. A third repeats a stored scale, if weights have one per row."""
    launched: list[str] = []
    for name in ("quantize_tokens", "quantize_tensor", "quantize_groups", "multiply_blocks"):
        monkeypatch.setattr(fp8.kernels, name, _Recorder(name, launched))
    layer = make_layer(scheme)
    layer.operations = TRITON
    x = inputs(5, 192, torch.bfloat16)
    with _Operations(launched):
        layer(x)
    match scheme.weights, scheme.activations:
        case "block", _:
            assert launched == ["quantize_groups", "multiply_blocks"]
        case "channel", "tensor":
            assert launched == ["quantize_tensor", "repeat", "_scaled_mm"]
        case _, kind:
            assert launched == [f"quantize_{'tokens' if kind == 'token' else 'tensor'}", "_scaled_mm"]


class _Recorder:
    """Records that a kernel is launched, instead of launching it."""

    def __init__(self, name: str, launched: list[str]) -> None:
        self._name, self._launched = name, launched

    def __getitem__(self, grid: Any) -> Any:
        return lambda *arguments, **options: self._launched.append(self._name)


class _Operations(TorchDispatchMode):
    """Records torch's operations that launch kernels."""

    def __init__(self, launched: list[str]) -> None:
        super().__init__()
        self._launched = launched

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = function.name().removeprefix("aten::").partition(".")[0]
        if "empty" not in name and not any(found.alias_info for found in function._schema.returns):
            self._launched.append(name)
        return function(*arguments, **(options or {}))


@pytest.mark.filterwarnings("ignore:invalid value")  # of the interpreter
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_stay_visible(bad: float) -> None:
    x = normal(3, 256).bfloat16()
    x[1, 5] = bad
    for quantize in (TORCH.quantize_tokens, TRITON.quantize_tokens):
        numbers, scales = quantize(x)
        product = numbers.float() * scales
        assert not product[1].isfinite().all()
        assert product[[0, 2]].isfinite().all()

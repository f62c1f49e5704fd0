"""Products with int8 weights: what they are, and that a row depends on nothing but the row."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody uses

from inference.cpu.int8 import Int8Linear, quantize, replace_linears

SHAPES = [(32, 16), (64, 1), (7, 5), (100, 30), (577, 193), (576, 1536)]


def make_linear(size: int, columns: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(size + columns)
    return nn.Linear(size, columns, bias=bias).requires_grad_(False)


def rounded(linear: nn.Linear) -> torch.Tensor:
    """The weights [out, in] that the int8 layer stands for, float64."""
    weight = F.pad(linear.weight, (0, -linear.in_features % 32))
    values, scales = quantize(weight, 32)
    grouped = values.double().view(len(values), -1, 32) * scales.double()[..., None]
    return grouped.view(len(values), -1)[:, : linear.in_features]


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 13, 25])
@pytest.mark.parametrize(("size", "columns"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_it_multiplies_with_the_rounded_weights(size: int, columns: int, rows: int, bias: bool) -> None:
    linear = make_linear(size, columns, bias)
    x = torch.randn(rows, size) * 3
    expected = x.double() @ rounded(linear).T + (linear.bias.double() if bias else 0.0)
    output = Int8Linear(linear)(x)
    assert output.shape == (rows, columns)
    # The activations are rounded to 1 / 32767 of their largest.
    bound = x.abs().amax(1, keepdim=True) / 32767 * rounded(linear).abs().sum(1) + 1e-5
    assert ((output - expected).abs() <= bound).all()


def test_weights_are_rounded_to_the_nearest_of_255() -> None:
    weight = torch.randn(8, 96) * torch.logspace(-3, 3, 8)[:, None]
    values, scales = quantize(weight, 32)
    assert values.abs().amax() == 127
    error = (values.view(8, 3, 32) * scales[..., None] - weight.view(8, 3, 32)).abs()
    assert (error <= scales[..., None] * 0.5001).all()


def test_a_row_does_not_depend_on_the_others() -> None:
    layer = Int8Linear(make_linear(576, 200))
    x = torch.randn(40, 576)
    together = layer(x)
    for count in (1, 2, 3, 5, 6, 11, 17):
        for start in (0, 9, 23):
            assert torch.equal(layer(x[start : start + count]), together[start : start + count])


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_row_breaks_no_other(broken: float) -> None:
    layer = Int8Linear(make_linear(64, 48))
    x = torch.randn(7, 64)
    expected = layer(x)
    x[3, 5] = broken
    output = layer(x)
    assert not output[3].isfinite().any()
    kept = [0, 1, 2, 4, 5, 6]
    assert torch.equal(output[kept], expected[kept])


def test_zeros_and_extremes() -> None:
    layer = Int8Linear(make_linear(64, 16))
    assert torch.equal(layer(torch.zeros(2, 64)), layer.weights[2].expand(2, 16))
    assert (
        Int8Linear(nn.Linear(32, 16, bias=False).requires_grad_(False))(torch.full((1, 32), 1e38))
        .isfinite()
        .all()
    )
    assert Int8Linear(make_linear(32, 16))(torch.full((1, 32), 1e-42)).isfinite().all()
    zero = make_linear(64, 16, bias=False)
    zero.weight.zero_()
    assert torch.equal(Int8Linear(zero)(torch.randn(3, 64)), torch.zeros(3, 16))


def test_no_rows_at_all() -> None:
    """A step in which no prompt comes to its end has no logits."""
    assert Int8Linear(make_linear(32, 16))(torch.empty(1, 0, 32)).shape == (1, 0, 16)


def test_any_leading_shape_and_stride() -> None:
    layer = Int8Linear(make_linear(32, 16))
    x = torch.randn(2, 5, 32)
    assert torch.equal(layer(x).view(10, 16), layer(x.view(10, 32)))
    assert torch.equal(layer(x.transpose(0, 1)), layer(x).transpose(0, 1))


def test_a_model_gets_int8_layers_everywhere() -> None:
    model = nn.Sequential(nn.Linear(32, 16), nn.ModuleDict({"inner": nn.Linear(16, 4)}))
    replace_linears(model)
    assert [type(module) for module in model.modules()].count(Int8Linear) == 2
    assert not any(type(module) is nn.Linear for module in model.modules())

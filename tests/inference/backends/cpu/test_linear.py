"""Products with packed weights are right, and the result for a row depends on that row alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody uses

from inference.backends.cpu.linear import QuantizedLinear, replace_linears
from tests.inference.backends.cpu.weights import in_four_bits

SHAPES = [(32, 16), (64, 1), (7, 5), (100, 30), (577, 193), (576, 1536)]
FOUR_BIT_SHAPES = [(32, 16), (64, 1), (96, 30), (576, 193), (1536, 576)]
BOTH = pytest.mark.parametrize("bits", [4, 8])


def make_linear(size: int, columns: int, bias: bool = True, bits: int = 8) -> nn.Linear:
    torch.manual_seed(size + columns)
    linear = nn.Linear(size, columns, bias=bias).requires_grad_(False)
    if bits == 4:
        linear.weight.copy_(in_four_bits(linear.weight))
    return linear


def make_layer(size: int, columns: int, bias: bool = True, bits: int = 8) -> QuantizedLinear:
    layer = QuantizedLinear(make_linear(size, columns, bias, bits))
    assert layer.weights.bits() == bits
    return layer


def grouped(x: torch.Tensor) -> torch.Tensor:
    """Pads x [rows, inputs] with zeros and returns it as [rows, groups, 32]."""
    return F.pad(x, (0, -x.shape[1] % 32)).view(len(x), -1, 32)


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 13, 25])
@pytest.mark.parametrize(("size", "columns"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_8_bit_products_use_the_rounded_weights(size: int, columns: int, rows: int, bias: bool) -> None:
    linear = make_linear(size, columns, bias)
    layer = QuantizedLinear(linear)
    weight = layer.weights.weight().double()
    x = torch.randn(rows, size) * 3
    expected = x.double() @ weight.T + (linear.bias.double() if bias else 0.0)
    output = layer(x)
    assert output.shape == (rows, columns)
    # Activations are rounded to multiples of 1 / 32767 of the row's largest.
    bound = x.abs().amax(1, keepdim=True) / 32767 * weight.abs().sum(1) + 1e-5
    assert ((output - expected).abs() <= bound).all()


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 13, 25, 300])
@pytest.mark.parametrize(("size", "columns"), FOUR_BIT_SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_4_bit_products_use_the_exact_weights(size: int, columns: int, rows: int, bias: bool) -> None:
    linear = make_linear(size, columns, bias, bits=4)
    layer = QuantizedLinear(linear)
    assert layer.weights.bits() == 4
    assert torch.equal(layer.weights.weight(), linear.weight)
    x = torch.randn(rows, size) * 3 + torch.randn(size)
    expected = x.double() @ linear.weight.double().T + (linear.bias.double() if bias else 0.0)
    # The activations of a group are rounded to 255 even steps from the lowest to the highest.
    ranges = grouped(x).amax(2) - grouped(x).amin(2)
    bound = ranges / 254 * 0.51 @ grouped(linear.weight).abs().sum(2).T + 1e-4
    assert ((layer(x) - expected).abs() <= bound).all()


def test_activations_on_255_even_steps_are_not_rounded() -> None:
    linear = make_linear(64, 16, bits=4)
    x = torch.randint(-127, 128, (9, 2, 32)).float()
    x[..., 0], x[..., 1] = -127, 127
    x = ((x * 0.25) + torch.randn(9, 2, 1)).view(9, 64)
    expected = x.double() @ linear.weight.double().T + linear.bias.double()
    assert (QuantizedLinear(linear)(x) - expected).abs().max() < 1e-4


def test_8_bit_weights_are_rounded_to_the_nearest_step() -> None:
    linear = make_linear(96, 8)
    linear.weight.copy_(torch.randn(8, 96) * torch.logspace(-3, 3, 8)[:, None])
    steps = grouped(linear.weight).abs().amax(2, keepdim=True) / 127
    error = (grouped(QuantizedLinear(linear).weights.weight()) - grouped(linear.weight)).abs()
    assert (error <= steps * 0.5001).all()


@pytest.mark.parametrize("change", [1.001, 1 - 2**-20])
def test_one_weight_off_the_steps_makes_the_layer_8_bit(change: float) -> None:
    linear = make_linear(64, 16, bits=4)
    linear.weight[3, 40] *= change
    assert QuantizedLinear(linear).weights.bits() == 8


def test_equal_weights_fit_into_4_bits() -> None:
    linear = make_linear(64, 16)
    linear.weight.fill_(0.25)
    layer = QuantizedLinear(linear)
    assert layer.weights.bits() == 4
    assert torch.equal(layer.weights.weight(), linear.weight)


@BOTH
def test_a_row_does_not_depend_on_the_others(bits: int) -> None:
    layer = make_layer(1536, 200, bits=bits)
    x = torch.randn(300, 1536)
    together = layer(x)
    for count in (1, 2, 3, 5, 6, 11, 17, 100):
        for start in (0, 9, 23, 190):
            assert torch.equal(layer(x[start : start + count]), together[start : start + count])


@BOTH
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_affects_no_other_row(broken: float, bits: int) -> None:
    layer = make_layer(64, 48, bits=bits)
    x = torch.randn(7, 64)
    expected = layer(x)
    x[3, 5] = broken
    output = layer(x)
    assert not output[3].isfinite().any()
    kept = [0, 1, 2, 4, 5, 6]
    assert torch.equal(output[kept], expected[kept])


@BOTH
def test_zeros_and_extremes(bits: int) -> None:
    layer, linear = make_layer(64, 16, bits=bits), make_linear(64, 16, bits=bits)
    assert torch.equal(layer(torch.zeros(2, 64)), linear.bias.expand(2, 16))
    assert layer(torch.full((1, 64), 1e35)).isfinite().all()
    assert layer(torch.full((1, 64), 1e-42)).isfinite().all()
    assert layer(torch.tensor([1e-42, 2e-42] * 32)[None]).isfinite().all()
    zero = make_linear(64, 16, bias=False)
    zero.weight.zero_()
    assert torch.equal(QuantizedLinear(zero)(torch.randn(3, 64)), torch.zeros(3, 16))


@BOTH
def test_no_rows_at_all(bits: int) -> None:
    """A step has no logits if no sequence of it reaches the end of its prompt."""
    assert make_layer(32, 16, bits=bits)(torch.empty(1, 0, 32)).shape == (1, 0, 16)


@BOTH
def test_any_leading_shape_and_stride(bits: int) -> None:
    layer = make_layer(32, 16, bits=bits)
    x = torch.randn(2, 5, 32)
    assert torch.equal(layer(x).view(10, 16), layer(x.view(10, 32)))
    assert torch.equal(layer(x.transpose(0, 1)), layer(x).transpose(0, 1))


@BOTH
def test_joined_layers_and_their_parts(bits: int) -> None:
    linears = [make_linear(64, columns, bits=bits) for columns in (32, 16, 48)]
    layers = [QuantizedLinear(linear) for linear in linears]
    x = torch.randn(5, 64)
    joined = torch.ops.tiller_cpu.join([layer.weights for layer in layers])
    expected = [layer(x) for layer in layers]
    assert torch.equal(torch.ops.tiller_cpu.linear(x, joined), torch.cat(expected, -1))
    assert torch.equal(torch.ops.tiller_cpu.linear(x, joined.slice(32, 16)), expected[1])


@pytest.mark.parametrize(
    "other", [make_linear(64, 16, bias=False), make_linear(32, 16), make_linear(64, 16, bits=4)]
)
def test_different_layers_cannot_be_joined(other: nn.Linear) -> None:
    layers = [make_layer(64, 16).weights, QuantizedLinear(other).weights]
    assert not layers[1].can_join(layers[0])
    with pytest.raises(RuntimeError, match="cannot be joined"):
        torch.ops.tiller_cpu.join(layers)


def test_input_with_a_wrong_number_of_columns_is_refused() -> None:
    with pytest.raises(RuntimeError, match="x has 64 columns, but the weights have 32 inputs"):
        make_layer(32, 16)(torch.randn(2, 64))


def test_all_linear_layers_of_a_model_are_replaced() -> None:
    model = nn.Sequential(nn.Linear(32, 16), nn.ModuleDict({"inner": nn.Linear(16, 4)}))
    replace_linears(model)
    assert [type(module) for module in model.modules()].count(QuantizedLinear) == 2
    assert not any(type(module) is nn.Linear for module in model.modules())

"""Linear layers whose weights are int8, with one scale for each 32 inputs of an output.

Activations are rounded to int16, with one scale per token: that costs CPUs no more than int8 and loses
nothing that can be measured, where int8 activations change every eighth token of a small model. A row's
result depends on nothing but the row.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody uses

_LARGEST = 127

Int8Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""int8 [panels, in / pair, panel, pair], their scales [panels, in / group, panel], and the bias [out]."""


class Int8Linear(nn.Module):
    """Stands in for an nn.Linear on the CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        panel, pair, group = torch.ops.tiller_cpu.int8_layout()
        weight = linear.weight.detach().float()
        padded = F.pad(weight, (0, -self.in_features % group, 0, -self.out_features % panel))
        rows, columns = padded.shape
        values, scales = quantize(padded, group)
        packed = values.view(rows // panel, panel, columns // pair, pair).transpose(1, 2).contiguous()
        scales = scales.view(rows // panel, panel, columns // group).transpose(1, 2).contiguous()
        bias = None if linear.bias is None else linear.bias.detach().float()
        # In a tuple, which an nn.Module finds many times faster than its buffers.
        self.weights: Int8Weights = packed, scales, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: [..., in_features] float32; returns [..., out_features] float32."""
        output: torch.Tensor = torch.ops.tiller_cpu.int8_linear(x, *self.weights, self.out_features)
        return output


def quantize(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`weight` [out, in] float32 as int8 [out, in] times float32 scales [out, in / group]."""
    grouped = weight.view(weight.shape[0], -1, group)
    scales = grouped.abs().amax(-1) / _LARGEST
    divisors = scales.clamp(min=torch.finfo(torch.float32).tiny)
    return (grouped / divisors[..., None]).round().to(torch.int8).view_as(weight), scales


def replace_linears(model: nn.Module) -> None:
    """Puts an Int8Linear in the place of every nn.Linear."""
    linears = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    for name, linear in linears:
        model.set_submodule(name, Int8Linear(linear))

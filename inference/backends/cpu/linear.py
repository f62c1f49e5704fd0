"""Linear layers with packed weights: in 4 bits where that loses nothing, else in 8, which is called int8.

8 bits have one scale for each 32 inputs of an output; activations are then rounded to int16, with a scale
per token. Weights that came in 4 bits, of which each 32 lie on 16 even steps, stay in 4, with a minimum and
a step for each 32; activations are then rounded to int8, with a middle and a scale for each 32. A row's
result depends on nothing but the row.
"""

from typing import Any

import torch
from torch import nn


class QuantizedLinear(nn.Module):
    """Stands in for an nn.Linear on the CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.has_bias = bias is not None
        self.weights: Any = torch.classes.tiller_cpu.Linear(linear.weight.detach().float(), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: [..., in_features] float32; returns [..., out_features] float32."""
        output: torch.Tensor = torch.ops.tiller_cpu.linear(x, self.weights)
        return output


def replace_linears(model: nn.Module) -> None:
    """Puts an QuantizedLinear in the place of every nn.Linear."""
    linears = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    for name, linear in linears:
        model.set_submodule(name, QuantizedLinear(linear))

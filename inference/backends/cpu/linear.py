"""Linear layers with packed weights: 4 bits per weight if that is exact, else 8 bits.

Both formats split the inputs of an output into groups of 32.
- 8 bits: weights are rounded to int8, with a float32 scale per group. Activations are rounded to int16, with
  one scale per row.
- 4 bits: for weights that came in 4 bits, so that each group lies on 16 even steps. It stores a float16
  minimum and step per group. Activations are rounded to int8, with a middle and a scale per group of a row.

The result for a row depends on that row alone.
"""

from typing import Any

import torch
from torch import nn

from inference.compute.gradients import multiply


class QuantizedLinear(nn.Module):
    """Replaces an nn.Linear on the CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.has_bias = bias is not None
        self.weights: Any = torch.classes.tiller_cpu.Linear(linear.weight.detach().float(), bias)

    @property
    def weight(self) -> torch.Tensor:
        """[out_features, in_features] float32: what the packed weights stand for, computed at each access.

        The routers of some models multiply with it themselves.
        """
        weight: torch.Tensor = self.weights.weight()
        return weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: [..., in_features] float32. Returns [..., out_features] float32."""
        if torch.is_grad_enabled():
            return multiply(x, self._product, self.weights.weight)
        return self._product(x)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.tiller_cpu.linear(x, self.weights)
        return output


def replace_linears(model: nn.Module) -> None:
    """Replaces every nn.Linear of the model by a QuantizedLinear."""
    linears = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    for name, linear in linears:
        model.set_submodule(name, QuantizedLinear(linear))

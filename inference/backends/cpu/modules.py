"""Modules of a decoder layer that run as one operation each.

torch cannot differentiate the operations. While gradients are enabled, the original modules compute.
"""

from typing import Any

import torch
from torch import nn

from inference.backends.cpu.linear import QuantizedLinear


class RMSNorm(nn.Module):
    def __init__(self, original: nn.Module, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self._original = (original,)  # in a tuple, so that it is no part of the model
        self.arguments = weight.detach(), epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: [..., hidden_size] float32. Returns the same shape."""
        output: torch.Tensor
        if torch.is_grad_enabled():
            output = self._original[0](x)
        else:
            output = torch.ops.tiller_cpu.rms_norm(x, *self.arguments)
        return output


class QuantizedGatedMLP(nn.Module):
    def __init__(
        self, original: nn.Module, gate: QuantizedLinear, up: QuantizedLinear, down: QuantizedLinear
    ) -> None:
        super().__init__()
        self._original = (original,)  # as above
        self.arguments: tuple[Any, ...] = gate.weights, up.weights, down.weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: [..., hidden_size] float32. Returns the same shape."""
        output: torch.Tensor
        if torch.is_grad_enabled():
            output = self._original[0](x)
        else:
            output = torch.ops.tiller_cpu.gated_mlp(x, *self.arguments)
        return output

"""Modules of a decoder layer that run as one operation each."""

from typing import Any

import torch
from torch import nn

from inference.backends.cpu.linear import QuantizedLinear


class RMSNorm(nn.Module):
    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.arguments = weight.detach(), epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: [..., hidden_size] float32. Returns the same shape."""
        output: torch.Tensor = torch.ops.tiller_cpu.rms_norm(x, *self.arguments)
        return output


class QuantizedGatedMLP(nn.Module):
    def __init__(self, gate: QuantizedLinear, up: QuantizedLinear, down: QuantizedLinear) -> None:
        super().__init__()
        self.arguments: tuple[Any, ...] = gate.weights, up.weights, down.weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: [..., hidden_size] float32. Returns the same shape."""
        output: torch.Tensor = torch.ops.tiller_cpu.gated_mlp(x, *self.arguments)
        return output

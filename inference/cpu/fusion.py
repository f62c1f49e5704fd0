"""Puts single operations in the place of what transformers computes in many: at one token, each costs
more to start than to compute. What is not known here stays as it is.
"""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from inference.cpu.int8 import Int8Linear

_TOLERANCE = 1e-3  # relative to the largest number; what is something else differs by much more
_ROTARY = "apply_rotary_pos_emb"  # as transformers' models call it


class RMSNorm(nn.Module):
    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: [..., hidden_size] float32, as is the result."""
        output: torch.Tensor = torch.ops.tiller_cpu.rms_norm(x, self.weight, self.epsilon)
        return output


class Int8GatedMLP(nn.Module):
    def __init__(self, gate: Int8Linear, up: Int8Linear, down: Int8Linear) -> None:
        super().__init__()
        self.gate, self.up, self.down = gate, up, down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x`: [..., hidden_size] float32, as is the result."""
        parts = (self.gate, self.up, self.down)
        weights = [tensor for part in parts for tensor in (part.packed, part.scales)]
        output: torch.Tensor = torch.ops.tiller_cpu.int8_gated_mlp(
            x, *weights, self.gate.out_features, self.down.out_features
        )
        return output


@torch.inference_mode()
def fuse(model: nn.Module) -> None:
    """Replaces the parts of a float32 model on the CPU for which there is an operation."""
    for name, module in list(model.named_modules()):
        if replacement := _find_replacement(module):
            model.set_submodule(name, replacement)
        elif _ROTARY in getattr(type(module).forward, "__code__", _ROTARY_FREE).co_names:
            _replace_rotary(module)


def _find_replacement(module: nn.Module) -> nn.Module | None:
    if type(module).__name__.endswith("RMSNorm"):
        return _fused_norm(module)
    if type(module).__name__.endswith("MLP"):
        return _fused_mlp(module)
    return None


def _fused_norm(module: nn.Module) -> nn.Module | None:
    epsilon = getattr(module, "variance_epsilon", None)
    weight = getattr(module, "weight", None)
    if epsilon is None or not isinstance(weight, nn.Parameter):
        return None
    return _if_equal(module, RMSNorm(weight, epsilon), weight.shape[0])


def _fused_mlp(module: nn.Module) -> nn.Module | None:
    gate, up, down = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    if not (isinstance(gate, Int8Linear) and isinstance(up, Int8Linear) and isinstance(down, Int8Linear)):
        return None
    if any(linear.bias is not None for linear in (gate, up, down)):
        return None
    return _if_equal(module, Int8GatedMLP(gate, up, down), gate.in_features)


def _if_equal(module: nn.Module, replacement: nn.Module, size: int) -> nn.Module | None:
    """The replacement, if it computes the same: a module of a known name may do something else."""
    x = _random(3, size)
    return replacement if _are_equal(module(x), replacement(x)) else None


def _are_equal(expected: torch.Tensor, ours: torch.Tensor) -> bool:
    return bool((expected - ours).abs().max() <= _TOLERANCE * expected.abs().max())


def _random(*shape: int) -> torch.Tensor:
    """The same every time, as is what depends on it."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _free() -> None:
    """Calls nothing."""


_ROTARY_FREE = _free.__code__


def _replace_rotary(module: nn.Module) -> None:
    """Has this module's forward call our rotation, if it is the same as the model's own."""
    forward: Any = type(module).forward
    theirs = forward.__globals__[_ROTARY]
    if not _rotates_alike(theirs):
        return
    scope = {**forward.__globals__, _ROTARY: _rotary_or(theirs)}
    ours = types.FunctionType(
        forward.__code__, scope, forward.__name__, forward.__defaults__, forward.__closure__
    )
    ours.__kwdefaults__ = forward.__kwdefaults__
    module.forward = types.MethodType(ours, module)


def _rotary_or(theirs: Callable[..., Any]) -> Callable[..., Any]:
    def rotary(queries: Any, keys: Any, cosines: Any, sines: Any, *others: Any, **options: Any) -> Any:
        whole = cosines.shape[-1] == queries.shape[-1] and cosines.shape[0] == queries.shape[0] == 1
        if whole and not others and not options:
            return torch.ops.tiller_cpu.rotary(queries, keys, cosines, sines)
        return theirs(queries, keys, cosines, sines, *others, **options)

    return rotary


def _rotates_alike(theirs: Callable[..., Any]) -> bool:
    heads = [_random(1, 5, number, 8).transpose(1, 2) for number in (4, 2)]
    angles = _random(1, 5, 8)
    expected = theirs(*heads, angles.cos(), angles.sin())
    ours = torch.ops.tiller_cpu.rotary(*heads, angles.cos(), angles.sin())
    return all(_are_equal(*pair) for pair in zip(expected, ours, strict=True))

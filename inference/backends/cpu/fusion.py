"""Replaces parts of a transformers model by single operations: at one token, an operation costs more to start
than to compute. Parts that are not recognized, or that compute something else, stay as they are.
"""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from inference.backends.comparison import compute_the_same, random
from inference.backends.cpu.decoder_layer import fuse_decoder_layer
from inference.backends.cpu.linear import QuantizedLinear
from inference.backends.cpu.modules import QuantizedGatedMLP, RMSNorm
from inference.backends.cpu.quantized_attention import fused_attention

_ROTARY = "apply_rotary_pos_emb"  # the function's name in transformers' models


@torch.inference_mode()
def fuse(model: nn.Module) -> None:
    """Replaces those parts of a float32 CPU model for which there is an operation."""
    for module in list(model.modules()):
        if _ROTARY in _names_used(module):
            _replace_rotary(module)
    replaced: list[str] = []
    for name, module in list(model.named_modules()):
        within = any(name.startswith(f"{other}.") for other in replaced)
        if not within and (replacement := _find_replacement(module)):
            model.set_submodule(name, replacement)
            replaced.append(name)
    for module in list(model.modules()):
        fuse_decoder_layer(module)


def _find_replacement(module: nn.Module) -> nn.Module | None:
    kind = type(module).__name__
    if kind.endswith("RMSNorm"):
        return _fused_norm(module)
    if kind.endswith("MLP"):
        return _fused_mlp(module)
    if kind.endswith("Attention"):
        return fused_attention(module)
    return None


def _fused_norm(module: nn.Module) -> nn.Module | None:
    epsilon = getattr(module, "variance_epsilon", None)
    weight = getattr(module, "weight", None)
    if epsilon is None or not isinstance(weight, nn.Parameter):
        return None
    return _if_same(module, RMSNorm(module, weight, epsilon), weight.shape[0])


def _fused_mlp(module: nn.Module) -> nn.Module | None:
    gate, up, down = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    if not (
        isinstance(gate, QuantizedLinear)
        and isinstance(up, QuantizedLinear)
        and isinstance(down, QuantizedLinear)
    ):
        return None
    if any(linear.has_bias for linear in (gate, up, down)) or not up.weights.can_join(gate.weights):
        return None
    return _if_same(module, QuantizedGatedMLP(module, gate, up, down), gate.in_features)


def _if_same(module: nn.Module, replacement: nn.Module, size: int) -> nn.Module | None:
    x = random(3, size)
    return replacement if compute_the_same(lambda: module(x), lambda: replacement(x)) else None


def _names_used(module: nn.Module) -> tuple[str, ...]:
    code = getattr(type(module).forward, "__code__", None)
    return () if code is None else code.co_names


def _replace_rotary(module: nn.Module) -> None:
    """Makes this module's forward call the `rotary` operation, if that equals the model's own function."""
    forward: Any = type(module).forward
    original = forward.__globals__[_ROTARY]
    if not _is_same_rotation(original):
        return
    scope = {**forward.__globals__, _ROTARY: _rotary_or(original)}
    replacement = types.FunctionType(
        forward.__code__, scope, forward.__name__, forward.__defaults__, forward.__closure__
    )
    replacement.__kwdefaults__ = forward.__kwdefaults__
    module.forward = types.MethodType(replacement, module)


def _rotary_or(original: Callable[..., Any]) -> Callable[..., Any]:
    def rotary(queries: Any, keys: Any, cosines: Any, sines: Any, *others: Any, **options: Any) -> Any:
        whole = cosines.shape[-1] == queries.shape[-1] and cosines.shape[0] == queries.shape[0] == 1
        if whole and not others and not options and not torch.is_grad_enabled():
            return torch.ops.tiller_cpu.rotary(queries, keys, cosines, sines)
        return original(queries, keys, cosines, sines, *others, **options)

    return rotary


def _is_same_rotation(original: Callable[..., Any]) -> bool:
    heads = [random(1, 5, number, 8).transpose(1, 2) for number in (4, 2)]
    angles = random(1, 5, 8)

    def rotate(act: Callable[..., Any]) -> torch.Tensor:
        queries, keys = act(*heads, angles.cos(), angles.sin())
        return torch.cat([queries, keys], 1)

    return compute_the_same(lambda: rotate(original), lambda: rotate(torch.ops.tiller_cpu.rotary))

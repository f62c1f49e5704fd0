"""A whole quantized attention layer as one operation."""

from typing import Any

import torch
from torch import nn

from inference.backends.comparison import compute_the_same, has_untestable_options
from inference.backends.cpu.linear import QuantizedLinear
from inference.backends.cpu.paged_attention import attend
from inference.backends.trial import Trial
from inference.compute.attention import ForwardContext, PagedInputs

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class QuantizedAttention(nn.Module):
    """Replaces an attention layer of transformers. Without PagedInputs, it calls the original."""

    def __init__(self, attention: nn.Module) -> None:
        """`attention`: its projections are QuantizedLinear. Those of q, k and v are joined into one."""
        super().__init__()
        self._attention = attention
        self.layer: Any = attention.layer_idx
        self.head_dim: Any = attention.head_dim
        window: Any = getattr(attention, "sliding_window", None) or 0
        queries, keys, values, output = (getattr(attention, name) for name in _PROJECTIONS)
        heads = queries.out_features // self.head_dim
        self.kv_heads = keys.out_features // self.head_dim
        self.hidden_size = queries.in_features
        qkv = _join([queries, keys, values])
        self.operation: Any = torch.classes.tiller_cpu.AttentionLayer(
            qkv, output.weights, heads, attention.scaling, window
        )

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> Any:
        """`hidden_states`: [1, T, hidden_size]. Returns the same shape and None."""
        inputs = self.inputs_of(arguments)
        if inputs is None:
            return self._attention(hidden_states=hidden_states, **arguments)
        return self.operation.forward(hidden_states, *arguments["position_embeddings"], *inputs), None

    def inputs_of(self, arguments: dict[str, Any]) -> PagedInputs | None:
        """What the operation needs of a call's arguments. None if only the original can compute the call:
        without a KV cache, or if the model rotates no heads, or only a part of each.
        """
        forward_context = arguments.get("forward_context")
        if not isinstance(forward_context, ForwardContext):  # something else while the layers are examined
            return None
        angles = arguments.get("position_embeddings")
        if angles is None or angles[0].shape[-1] != self.head_dim:
            return None
        return forward_context.paged_inputs(self.layer)


def fused_attention(module: nn.Module) -> QuantizedAttention | None:
    """Returns None if the module is no attention layer of Llama's kind, or computes something else."""
    projections = [getattr(module, name, None) for name in _PROJECTIONS]
    if not all(isinstance(projection, QuantizedLinear) for projection in projections):
        return None
    if not all(hasattr(module, name) for name in ("layer_idx", "scaling", "head_dim", "config")):
        return None
    if has_untestable_options(module) or not _can_be_joined(projections[:3]):
        return None
    fused = QuantizedAttention(module)
    return fused if _is_same_attention(module, fused) else None


def _can_be_joined(linears: list[Any]) -> bool:
    return all(linear.weights.can_join(linears[0].weights) for linear in linears)


def _join(linears: list[QuantizedLinear]) -> Any:
    """Returns the concatenated weights. The linear layers then hold slices of them."""
    joined = torch.ops.tiller_cpu.join([linear.weights for linear in linears])
    start = 0
    for linear in linears:
        linear.weights = joined.slice(start, linear.out_features)
        start += linear.out_features
    return joined


def _is_same_attention(module: Any, fused: QuantizedAttention) -> bool:
    """Compares both on a few tokens of two sequences over a small KV cache."""
    trial = Trial(fused.kv_heads, fused.head_dim, attend, like=torch.empty(0))
    size = fused.hidden_size
    return compute_the_same(lambda: trial.run(module, size)[0], lambda: trial.run(fused, size)[0])

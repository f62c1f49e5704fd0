"""A whole int8 attention layer as one operation, for steps in which each sequence has one token."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from inference.cpu.int8 import Int8Linear
from inference.cpu.likeness import are_alike, random

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class Int8Attention(nn.Module):
    """Stands in for an attention layer of transformers; what is not its case it leaves to that."""

    def __init__(self, attention: nn.Module) -> None:
        """`attention`: its projections are Int8Linear; those of q, k and v become parts of one."""
        super().__init__()
        self._attention = attention
        self._layer: Any = attention.layer_idx
        self._scale: Any = attention.scaling
        self._window: Any = getattr(attention, "sliding_window", None) or 0
        queries, keys, values, output = (getattr(attention, name) for name in _PROJECTIONS)
        self._heads = queries.out_features // attention.head_dim
        self._weights = *_join([queries, keys, values]), *output.weights

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> Any:
        """As transformers': `hidden_states` [1, T, hidden_size], and a tuple with as much."""
        paged = arguments.get("paged")
        if paged is None or paged.batch.singles is None or paged.batch.groups:
            return self._attention(hidden_states=hidden_states, **arguments)
        batch, cache = paged.batch, paged.cache
        output = torch.ops.tiller_cpu.int8_attention(
            hidden_states,
            *arguments["position_embeddings"],
            *self._weights,
            cache.keys[self._layer],
            cache.values[self._layer],
            batch.slots,
            batch.singles.blocks,
            batch.singles.positions,
            cache.block_size,
            self._heads,
            self._scale,
            self._window,
        )
        return output, None


def fused_attention(module: nn.Module) -> Int8Attention | None:
    """None if it is no attention layer of the usual kind, or computes something else."""
    projections = [getattr(module, name, None) for name in _PROJECTIONS]
    if not all(isinstance(projection, Int8Linear) for projection in projections):
        return None
    if not all(hasattr(module, name) for name in ("layer_idx", "scaling", "head_dim", "config")):
        return None
    if _has_what_no_trial_finds(module) or not _can_be_joined(projections[:3]):
        return None
    fused = Int8Attention(module)
    return fused if _attends_alike(module, fused) else None


def _has_what_no_trial_finds(module: Any) -> bool:
    """A wide window, or a cap on large scores: a trial with a few small numbers says nothing of them."""
    if getattr(module.config, "attn_logit_softcapping", None):
        return True
    # Which layers have the window is then known to the module's code alone.
    return bool(getattr(module.config, "sliding_window", None)) and not hasattr(module, "sliding_window")


def _can_be_joined(linears: list[Any]) -> bool:
    panel, _, _ = torch.ops.tiller_cpu.int8_layout()
    whole = all(linear.out_features % panel == 0 for linear in linears)
    return whole and len({linear.weights[2] is None for linear in linears}) == 1


def _join(linears: list[Int8Linear]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """One after the other; the linears then hold parts of what is returned."""
    packed = torch.cat([linear.weights[0] for linear in linears])
    scales = torch.cat([linear.weights[1] for linear in linears])
    biases = [linear.weights[2] for linear in linears]
    start = 0
    for linear in linears:
        end = start + len(linear.weights[0])
        linear.weights = packed[start:end], scales[start:end], linear.weights[2]
        start = end
    return (
        packed,
        scales,
        None if biases[0] is None else torch.cat([bias for bias in biases if bias is not None]),
    )


def _attends_alike(module: Any, fused: Int8Attention) -> bool:
    """Tries both on the last tokens of two sequences in a small cache."""
    block_size, length = 16, 24
    head_dim, kv_heads = module.head_dim, module.k_proj.out_features // module.head_dim
    angles = random(1, 2, head_dim // 2).repeat(1, 1, 2)
    singles = SimpleNamespace(
        blocks=torch.tensor([[0, 1], [2, 3]], dtype=torch.int32), positions=torch.tensor([length - 1, 9])
    )
    slots = torch.tensor([length - 1, 2 * block_size + 9])
    batch = SimpleNamespace(singles=singles, groups=[], slots=slots)

    def attend(layer: nn.Module) -> torch.Tensor:
        keys, values = (random(4 * block_size, kv_heads, head_dim) for _ in range(2))
        cache = SimpleNamespace(
            keys={module.layer_idx: keys}, values={module.layer_idx: values}, block_size=block_size
        )
        output: torch.Tensor = layer(
            hidden_states=random(1, 2, module.q_proj.in_features),
            position_embeddings=(angles.cos(), angles.sin()),
            attention_mask=None,
            paged=SimpleNamespace(batch=batch, cache=cache),
        )[0]
        return output

    return are_alike(attend(module), attend(fused))

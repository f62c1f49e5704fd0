"""Attention over the paged KV cache for sequences of different lengths, as transformers models call it.

transformers looks up attention functions by name (`AttentionInterface`) and passes them every keyword
argument of the model call. `paged_attention` finds the batch in the argument `forward_context`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the usual name
from transformers import AttentionInterface

from inference.compute.batch import AttentionGroup, Batch
from inference.compute.kv_cache import KVCache

NAME = "tiller_paged"

_HONOURED = frozenset({"scaling", "sliding_window", "softcap"})
# Models also pass these arguments, and `paged_attention` needs none of them: rotary positions are already
# applied, inference has no dropout, and Tiller has its own cache. Only `forward_context` comes from Tiller.
_IRRELEVANT = frozenset(
    {
        "cache_position",
        "dropout",
        "is_causal",
        "output_attentions",
        "output_router_logits",
        "forward_context",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "use_cache",
    }
)


class PagedInputs(NamedTuple):
    """Inputs of attention that reads the KV cache in place: one layer, and all N sequences of a step."""

    key_cache: torch.Tensor  # [slots, num_kv_heads, key_size]
    value_cache: torch.Tensor  # [slots, num_kv_heads, value_size]
    slot_mapping: torch.Tensor  # [T] slots of the new keys and values
    block_tables: torch.Tensor  # int32 [N, highest number of blocks of a sequence]
    cu_seqlens: torch.Tensor  # [N + 1] index of each sequence's first token; the last entry is T
    positions: torch.Tensor  # [T]
    block_size: int


Attend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, PagedInputs, int, float, int, float], torch.Tensor
]
"""Computes attention of queries [1, num_heads, T, key_size], and stores keys and values.

Arguments: queries, new keys and new values (both [1, num_kv_heads, T, size]), the inputs, num_decodes (how
many sequences have one token in this step; they come first), scaling, sliding window (0: none) and softcap
(0: none). Returns [T, num_heads, value_size].
"""


@dataclass(frozen=True)
class ForwardContext:
    """What the attention of every layer needs to know about the step."""

    batch: Batch
    cache: KVCache
    attend: Attend | None
    """None: use SDPA over contexts gathered from the cache."""

    @property
    def num_decodes(self) -> int:
        """Number of sequences with one token in this step, which come first. 0 if the batch is for SDPA."""
        return 0 if self.batch.attention_metadata is None else self.batch.attention_metadata.num_decodes

    def paged_inputs(self, layer: int) -> PagedInputs | None:
        """The inputs for one layer. None if the batch is built for SDPA."""
        batch, cache = self.batch, self.cache
        if batch.attention_metadata is None:
            return None
        return PagedInputs(
            cache.keys[layer],
            cache.values[layer],
            batch.slot_mapping,
            batch.attention_metadata.block_tables,
            batch.attention_metadata.cu_seqlens,
            batch.positions,
            cache.block_size,
        )


def register() -> None:
    """Registers `paged_attention` with transformers as NAME."""
    AttentionInterface.register(NAME, paged_attention)


def paged_attention(
    module: nn.Module,
    query: torch.Tensor,  # [1, num_heads, T, key_size]
    key: torch.Tensor,  # [1, num_kv_heads, T, key_size]
    value: torch.Tensor,  # [1, num_kv_heads, T, value_size]
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - the batch defines the mask
    scaling: float | None = None,
    *,
    forward_context: ForwardContext,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Stores the new keys and values, and computes attention of each sequence over its own context.

    Returns [1, T, num_heads, value_size]. Models may pass other arguments; `unsupported_arguments` checks
    these once, when a model is loaded.
    """
    layer: Any = module.layer_idx
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if forward_context.attend is not None and (inputs := forward_context.paged_inputs(layer)):
        window, cap = sliding_window or 0, softcap or 0.0
        output = forward_context.attend(
            query, key, value, inputs, forward_context.num_decodes, scaling, window, cap
        )
        return output[None], None
    batch, cache = forward_context.batch, forward_context.cache
    cache.write(layer, batch.slot_mapping, key[0].transpose(0, 1), value[0].transpose(0, 1))
    output = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    queries = query[0].transpose(0, 1)  # [T, num_heads, key_size]
    num_kv_heads = key.shape[1]
    for group in batch.groups:
        output[group.tokens] = _attend(
            queries[group.tokens],
            cache.keys[layer][group.slots].transpose(1, 2),  # [B, num_kv_heads, L, key_size]
            cache.values[layer][group.slots].transpose(1, 2),
            group,
            num_kv_heads,
            scaling,
            sliding_window,
            softcap,
        )
    return output[None], None


def _attend(
    queries: torch.Tensor,  # [B * Q, num_heads, key_size]
    keys: torch.Tensor,  # [B, H, L, key_size], H = num_kv_heads
    values: torch.Tensor,  # [B, H, L, value_size]
    group: AttentionGroup,
    num_kv_heads: int,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
) -> torch.Tensor:  # [B * Q, num_heads, value_size]
    """Folds the heads that share a key head into the query axis, so that no key is repeated for SDPA."""
    num_rows, num_queries = group.query_positions.shape
    num_heads, key_size = queries.shape[1:]
    shared = num_heads // num_kv_heads
    folded = (
        queries.view(num_rows, num_queries, num_kv_heads, shared, key_size)
        .permute(0, 2, 3, 1, 4)
        .reshape(num_rows, num_kv_heads, shared * num_queries, key_size)
    )
    mask = group.mask(sliding_window, shared)
    if softcap is None:
        attended = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling)
    else:
        attended = _softcapped_attention(folded, keys, values, mask, scaling, softcap)
    return (
        attended.view(num_rows, num_kv_heads, shared, num_queries, -1)
        .permute(0, 3, 1, 2, 4)
        .reshape(num_rows * num_queries, num_heads, -1)
    )


def _softcapped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    softcap: float,
) -> torch.Tensor:
    """Attention with scores bounded to +-softcap by a tanh (Gemma 2, arXiv:2408.00118)."""
    scores = torch.tanh(query @ key.transpose(-1, -2) * scaling / softcap) * softcap
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return weights.to(query.dtype) @ value


def unsupported_arguments(module: nn.Module, arguments: dict[str, Any]) -> list[str]:
    """The names of those arguments of the model's attention that `paged_attention` does not support."""
    names = [
        name for name, given in arguments.items() if given is not None and name not in _HONOURED | _IRRELEVANT
    ]
    if arguments.get("is_causal", getattr(module, "is_causal", True)) is False:
        names.append("is_causal=False")
    return names

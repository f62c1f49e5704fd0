"""A small batch over a small KV cache, to compare a layer with its replacement."""

from collections.abc import Callable
from typing import Any

import torch

from inference.backends.comparison import random
from inference.compute.attention import Attend, ForwardContext, PagedInputs
from inference.compute.batch import AttentionMetadata, Batch
from inference.compute.kv_cache import KVCache, LayerShape

_BLOCK_SIZE = 16
_POSITIONS = ([200], [150, 151, 152, 153])
"""Of each sequence's new tokens. The contexts are longer than any kernel's tile of keys, and the first is
long enough that kernels split it."""
_BLOCKS = 13  # per sequence
_KEY_SCALE, _VALUE_SCALE = 3.0, 2.0
"""With large keys, each query attends to few positions. With large values, the attention's share of the
output is as large as the residual's. So a wrong position changes the output much more than rounding does."""


class Trial:
    """Two sequences: a decode of one token, and a prompt chunk of four tokens. They are not steered."""

    tokens = 5

    def __init__(self, kv_heads: int, head_dim: int, attend: Attend, like: torch.Tensor) -> None:
        """`like`: a tensor with the model's dtype, on its device."""
        self._attend = attend
        self._like = like
        self._shape = LayerShape(kv_heads, head_dim, head_dim, like.dtype)
        angles = random(1, self.tokens, head_dim // 2).repeat(1, 1, 2)
        self._angles = angles.cos().to(like), angles.sin().to(like)

    def run(self, layer: Callable[..., Any], hidden_size: int) -> Any:
        """Calls the layer with [1, tokens, hidden_size] hidden states, the same in every call.

        The KV cache is a new one in every call, since the layer writes to it.
        """
        return layer(
            hidden_states=random(1, self.tokens, hidden_size).to(self._like),
            position_embeddings=self._angles,
            attention_mask=None,
            forward_context=_TrialContext(self._batch(), self._cache(), self._attend),
        )

    def _cache(self) -> KVCache:
        cache = KVCache([self._shape], 2 * _BLOCKS, _BLOCK_SIZE, self._like.device)
        cache.keys[0].copy_(_KEY_SCALE * random(*cache.keys[0].shape))
        # Flipped, so that the values differ from the keys.
        cache.values[0].copy_(_VALUE_SCALE * random(*cache.values[0].shape).flip(0))
        return cache

    def _batch(self) -> Batch:
        order = random(2 * _BLOCKS).argsort()  # so that neighbouring blocks of a sequence are not neighbours
        block_tables = order.view(2, _BLOCKS)
        slots = [
            table[position // _BLOCK_SIZE] * _BLOCK_SIZE + position % _BLOCK_SIZE
            for table, positions in zip(block_tables.tolist(), _POSITIONS, strict=True)
            for position in positions
        ]
        return Batch(
            token_ids=self._integers([0] * self.tokens),
            positions=self._integers([position for positions in _POSITIONS for position in positions]),
            slot_mapping=self._integers(slots),
            attention_metadata=AttentionMetadata(
                block_tables.int().to(self._like.device), self._integers([0, 1, self.tokens]), num_decodes=1
            ),
            groups=[],
            logit_tokens=self._integers([]),
            sampling=[],
            probes=[],
            steering=None,
        )

    def _integers(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._like.device)


class _TrialContext(ForwardContext):
    """Gives every layer of the model the same cache."""

    def paged_inputs(self, layer: int) -> PagedInputs | None:  # noqa: ARG002
        return super().paged_inputs(0)

"""A small batch over a small KV cache, to compare a layer with its replacement."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from inference.backends.comparison import random
from inference.compute.attention import Attend, PagedInputs

_BLOCK_SIZE = 16


class Trial:
    """Two sequences: a decode of one token, and a prompt chunk of four tokens."""

    tokens = 5

    def __init__(self, kv_heads: int, head_dim: int, attend: Attend, like: torch.Tensor) -> None:
        """`like`: a tensor with the model's dtype, on its device."""
        self._attend = attend
        self._like = like
        self._cache_shape = 4 * _BLOCK_SIZE, kv_heads, head_dim
        self._positions = self._integers([23, 7, 8, 9, 10])
        self._slots = self._integers([23, 39, 40, 41, 42])
        self._blocks = self._integers([[0, 1], [2, 3]]).int()
        self._starts = self._integers([0, 1, self.tokens])
        angles = random(1, self.tokens, head_dim // 2).repeat(1, 1, 2)
        self._angles = angles.cos().to(like), angles.sin().to(like)

    def run(self, layer: Callable[..., Any], hidden_size: int) -> Any:
        """Calls the layer with [1, tokens, hidden_size] hidden states, the same in every call."""
        return layer(
            hidden_states=random(1, self.tokens, hidden_size).to(self._like),
            position_embeddings=self._angles,
            attention_mask=None,
            forward_context=SimpleNamespace(
                attend=self._attend, paged_inputs=self._paged_inputs, num_decodes=1, batch=None
            ),
        )

    def _paged_inputs(self, _: int) -> PagedInputs:
        """Returns a new cache in every call, since the layer writes to it."""
        return PagedInputs(
            random(*self._cache_shape).to(self._like),
            random(*self._cache_shape).flip(0).to(self._like),  # flipped, so that they differ from the keys
            self._slots,
            self._blocks,
            self._starts,
            self._positions,
            _BLOCK_SIZE,
        )

    def _integers(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, device=self._like.device)

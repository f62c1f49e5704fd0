"""A small batch over a small cache, on which a layer and its replacement are compared."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from inference.backends.comparison import random
from inference.compute.attention import Attend, PagedInputs

_BLOCK_SIZE = 16


class Trial:
    """One sequence's last token, and four tokens of another."""

    tokens = 5

    def __init__(self, kv_heads: int, head_dim: int, attend: Attend, like: torch.Tensor) -> None:
        """`like`: has the model's dtype, and is on its device."""
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
        """What the layer gives for the same [1, tokens, hidden_size] each time."""
        return layer(
            hidden_states=random(1, self.tokens, hidden_size).to(self._like),
            position_embeddings=self._angles,
            attention_mask=None,
            forward_context=SimpleNamespace(
                attend=self._attend, paged_inputs=self._paged_inputs, num_decodes=1, batch=None
            ),
        )

    def _paged_inputs(self, _: int) -> PagedInputs:
        """A cache that is new each time, since it is written to."""
        return PagedInputs(
            random(*self._cache_shape).to(self._like),
            random(*self._cache_shape).flip(0).to(self._like),  # something else than the keys
            self._slots,
            self._blocks,
            self._starts,
            self._positions,
            _BLOCK_SIZE,
        )

    def _integers(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, device=self._like.device)

"""A small batch over a small cache, on which a layer and its replacement are compared."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from inference.cpu.likeness import random

_BLOCK_SIZE = 16


class Trial:
    """One sequence's last token, and four tokens of another."""

    tokens = 5

    def __init__(self, kv_heads: int, head_dim: int) -> None:
        self._cache_shape = 4 * _BLOCK_SIZE, kv_heads, head_dim
        self._positions = torch.tensor([23, 7, 8, 9, 10])
        self._slots = torch.tensor([23, 39, 40, 41, 42])
        self._blocks = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
        self._starts = torch.tensor([0, 1, self.tokens])
        angles = random(1, self.tokens, head_dim // 2).repeat(1, 1, 2)
        self._angles = angles.cos(), angles.sin()

    def run(self, layer: Callable[..., Any], hidden: torch.Tensor) -> Any:
        """What the layer gives for `hidden` [1, tokens, hidden_size]."""
        return layer(
            hidden_states=hidden,
            position_embeddings=self._angles,
            attention_mask=None,
            paged=SimpleNamespace(
                in_place=lambda _: (
                    random(*self._cache_shape),
                    random(*self._cache_shape).flip(0),  # something else than the keys
                    self._slots,
                    self._blocks,
                    self._starts,
                    self._positions,
                    _BLOCK_SIZE,
                ),
                batch=None,
                cache=None,
            ),
        )

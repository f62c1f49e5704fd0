"""The keys and values of all sequences' tokens, by layer and slot. Knows no sequences.

Slot s has offset s % block_size in block s // block_size. One slot after the last block belongs to no
sequence: the padding slot. A gather reads zeros from it as padding, so padding never contains values of
another sequence. If attention reads the cache in place, nothing reads the slot; padding rows write to it.
"""

from typing import NamedTuple

import torch

from inference.compute import memory


class LayerShape(NamedTuple):
    """What one attention layer stores per token."""

    num_heads: int
    key_size: int
    value_size: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return self.num_heads * (self.key_size + self.value_size) * self.dtype.itemsize


class KVCache:
    def __init__(
        self, shapes: list[LayerShape], num_blocks: int, block_size: int, device: torch.device
    ) -> None:
        def allocate(shape: LayerShape, size: int) -> torch.Tensor:
            slots = num_blocks * block_size + 1
            return memory.zeros((slots, shape.num_heads, size), shape.dtype, device)

        self.num_blocks = num_blocks
        self.block_size = block_size
        self.padding_slot = num_blocks * block_size
        self.keys = [allocate(shape, shape.key_size) for shape in shapes]
        self.values = [allocate(shape, shape.value_size) for shape in shapes]

    def provide_memory(self) -> None:
        """Begins to take all its memory from the system, which else would give each page at its first use."""
        memory.provide([*self.keys, *self.values])

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Stores `keys` and `values` [T, num_heads, size] at `slots` [T]."""
        self.keys[layer].index_copy_(0, slots, keys)
        self.values[layer].index_copy_(0, slots, values)

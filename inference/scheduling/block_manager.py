"""Assigns KV cache blocks to sequences, and finds cached prefixes. Knows no tensors.

A block holds the keys and values of `block_size` consecutive tokens. When all its tokens are
computed, a block is registered under a hash of everything its content depends on: all tokens up
to its end, and their steering. A later sequence that begins with the same tokens shares the block
instead of computing it. A block without references keeps its content until it is allocated again;
the least recently used block is allocated first.
"""

import hashlib
import secrets
from array import array
from collections import OrderedDict
from collections.abc import Iterable

from inference.scheduling.sequence import Sequence


class BlockManager:
    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._salt = secrets.token_bytes(32)  # so that no client can construct a hash of another user's block
        self.num_prefix_cache_queries = 0
        self.num_prefix_cache_hits = 0
        self._references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._hash_of_block: dict[int, bytes] = {}
        self._block_of_hash: dict[bytes, int] = {}

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def match_prefix(self, sequence: Sequence) -> None:
        """Gives a sequence without blocks the cached blocks of its longest prefix, a prefix cache hit.

        The prefix has at most `num_reusable_tokens` tokens. The tokens after it remain to be computed.
        """
        for block in self._cached_prefix(sequence):
            self._acquire(block)
            sequence.block_table.append(block)
        sequence.num_computed_tokens = len(sequence.block_table) * self.block_size
        self.num_prefix_cache_queries += sequence.num_tokens
        self.num_prefix_cache_hits += sequence.num_computed_tokens

    def num_blocks_to_start(self, sequence: Sequence) -> int:
        """How many free blocks a sequence without blocks needs, to hold all its tokens.

        Does not count the cached blocks that other sequences hold, because it can share these.
        """
        shared = sum(self._references[block] > 0 for block in self._cached_prefix(sequence))
        return self._num_blocks_for(sequence.num_tokens) - shared

    def allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Allocates the blocks that `sequence` needs for `num_tokens` tokens in all.

        Returns False and allocates nothing if there are not enough free blocks.
        """
        missing = self._num_blocks_for(num_tokens) - len(sequence.block_table)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._references[block] = 1
            sequence.block_table.append(block)
        return True

    def register(self, sequence: Sequence, num_computed_tokens: int) -> None:
        """Registers the blocks that this step has filled, so that other sequences can share them.

        `num_computed_tokens`: the number of the sequence's computed tokens before this step.
        """
        first = num_computed_tokens // self.block_size
        last = sequence.num_computed_tokens // self.block_size
        if first == last:
            return
        self._update_hashes(sequence)
        for position in range(first, last):
            block, block_hash = sequence.block_table[position], sequence.block_hashes[position]
            if block_hash not in self._block_of_hash:
                self._block_of_hash[block_hash] = block
                self._hash_of_block[block] = block_hash

    def free(self, sequence: Sequence) -> None:
        """Releases all blocks of `sequence`. Their content can still be found by its hash."""
        for block in reversed(sequence.block_table):  # the end of a prefix is reused before its beginning
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
        sequence.block_table.clear()
        sequence.block_table_version += 1
        sequence.num_computed_tokens = 0

    def discard(self, sequence: Sequence) -> None:
        """Removes the hashes of the sequence's blocks, because their content may be wrong."""
        for block in sequence.block_table:
            self._forget(block)

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Raises RuntimeError if the bookkeeping is inconsistent. `sequences`: all that hold blocks."""
        held = [0] * self.num_blocks
        for sequence in sequences:
            for block in sequence.block_table:
                held[block] += 1
        if held != self._references:
            raise RuntimeError("the blocks' reference counts differ from the block tables")
        if {block for block, count in enumerate(held) if count == 0} != set(self._free):
            raise RuntimeError("the free blocks differ from the blocks without references")
        if {h: b for b, h in self._hash_of_block.items()} != self._block_of_hash:
            raise RuntimeError("the table of hashes by block differs from the table of blocks by hash")

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """The cached blocks of the sequence's longest prefix, within its `num_reusable_tokens`."""
        self._update_hashes(sequence)
        blocks = []
        for block_hash in sequence.block_hashes[: sequence.num_reusable_tokens // self.block_size]:
            block = self._block_of_hash.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _acquire(self, block: int) -> None:
        if self._references[block] == 0:
            del self._free[block]
        self._references[block] += 1

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of_block.pop(block, None)
        if block_hash is not None:
            del self._block_of_hash[block_hash]

    def _update_hashes(self, sequence: Sequence) -> None:
        """Extends the SHA-256 chain to all full blocks, over (parent hash, tokens, steering digest)."""
        size = self.block_size
        for position in range(len(sequence.block_hashes), sequence.num_tokens // size):
            parent = sequence.block_hashes[-1] if position else self._salt
            tokens = array("q", sequence.token_ids[position * size : (position + 1) * size])
            chained = hashlib.sha256(parent)
            chained.update(tokens)
            chained.update(sequence.steering_digest(position * size, (position + 1) * size))
            sequence.block_hashes.append(chained.digest())

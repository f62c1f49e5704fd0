"""Which block of the KV cache belongs to whom. Knows block numbers and token ids, no tensors.

A block holds the keys and values of `block_size` consecutive tokens. A full block whose content
is computed is registered under a hash that names everything its content depends on: all tokens
up to its end, and what steers them. A later sequence that begins with the same tokens takes the
block over instead of computing it. Blocks that nobody refers to keep their content until they
are needed for something else, least recently used first.
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
        self._salt = secrets.token_bytes(32)  # so that nobody can aim at another user's blocks
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
        """Gives a sequence without blocks those computed ones that hold the beginning of it.

        What `num_reusable_tokens` leaves out is left to compute.
        """
        for block in self._cached_prefix(sequence):
            self._acquire(block)
            sequence.block_table.append(block)
        sequence.num_computed_tokens = len(sequence.block_table) * self.block_size
        self.num_prefix_cache_queries += sequence.num_tokens
        self.num_prefix_cache_hits += sequence.num_computed_tokens

    def num_blocks_to_start(self, sequence: Sequence) -> int:
        """How many free blocks a sequence without any would take to hold all its tokens."""
        shared = sum(self._references[block] > 0 for block in self._cached_prefix(sequence))
        return self._num_blocks_for(sequence.num_tokens) - shared

    def allocate(self, sequence: Sequence, num_tokens: int) -> bool:
        """Gives `sequence` the blocks for `num_tokens` tokens in all, or nothing if they lack."""
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
        """Makes the blocks that became full known to others.

        `num_computed_tokens`: how many tokens of the sequence were computed before this step.
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
        """Takes all blocks from `sequence`. Their content may still be found by its hash."""
        for block in reversed(sequence.block_table):  # a chain's end is reused first
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
        sequence.block_table.clear()
        sequence.num_computed_tokens = 0

    def discard(self, sequence: Sequence) -> None:
        """Makes what the sequence's blocks hold unknown to others, since it cannot be trusted."""
        for block in sequence.block_table:
            self._forget(block)

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Raises RuntimeError unless every block is accounted for. `sequences`: all that hold any."""
        held = [0] * self.num_blocks
        for sequence in sequences:
            for block in sequence.block_table:
                held[block] += 1
        if held != self._references:
            raise RuntimeError("the blocks' reference counts differ from the block tables")
        if {block for block, count in enumerate(held) if count == 0} != set(self._free):
            raise RuntimeError("the free blocks are not those without a reference")
        if {h: b for b, h in self._hash_of_block.items()} != self._block_of_hash:
            raise RuntimeError("the two directions of the hash table differ")

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """The computed blocks that hold the beginning of a sequence, as far as it may reuse them."""
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
        """Extends the SHA-256 chain over (parent, tokens, steering digest) to all full blocks."""
        size = self.block_size
        for position in range(len(sequence.block_hashes), sequence.num_tokens // size):
            parent = sequence.block_hashes[-1] if position else self._salt
            tokens = array("q", sequence.token_ids[position * size : (position + 1) * size])
            chained = hashlib.sha256(parent)
            chained.update(tokens)
            chained.update(sequence.steering_digest)
            sequence.block_hashes.append(chained.digest())

"""Tests which sequence holds which KV cache block, and which sequences share blocks. Without tensors."""

import random

import pytest

from inference.interface.protocol import GenerationRequest
from inference.scheduling.block_manager import BlockManager
from inference.scheduling.probe import Probe
from inference.scheduling.sequence import Sequence, Steering, build_probe_sequence, build_sequences


def make_sequence(token_ids: list[int], steering_digest: bytes = b"") -> Sequence:
    request = GenerationRequest("r", token_ids, max_tokens=1000)
    steering = Steering(1, 1.0, steering_digest) if steering_digest else None
    [sequence] = build_sequences(request, 0.0, iter([0]), random.Random(0), steering)
    return sequence


def compute(blocks: BlockManager, sequence: Sequence) -> None:
    """Allocates and computes all tokens of a sequence, as a step would."""
    assert blocks.allocate(sequence, sequence.num_tokens)
    before, sequence.num_computed_tokens = sequence.num_computed_tokens, sequence.num_tokens
    blocks.register(sequence, before)


def cached_tokens(blocks: BlockManager, token_ids: list[int], steering_digest: bytes = b"") -> int:
    """How many tokens of a new sequence are in the prefix cache. Frees the sequence again."""
    sequence = make_sequence(token_ids, steering_digest)
    blocks.match_prefix(sequence)
    num_cached = sequence.num_computed_tokens
    blocks.free(sequence)
    return num_cached


def test_a_computed_prefix_is_found_in_whole_blocks() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    compute(blocks, make_sequence(list(range(11))))
    assert cached_tokens(blocks, list(range(20))) == 8


def test_at_least_one_token_is_left_to_compute() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    compute(blocks, make_sequence(list(range(8))))
    assert cached_tokens(blocks, list(range(8))) == 4


def test_a_prefix_is_shared_only_from_its_beginning() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    compute(blocks, make_sequence(list(range(12))))
    assert cached_tokens(blocks, [99, *range(1, 12)]) == 0
    assert cached_tokens(blocks, [*range(4), 99, *range(5, 12)]) == 4


def test_blocks_are_shared_only_under_the_same_steering() -> None:
    blocks = BlockManager(num_blocks=32, block_size=4)
    tokens = list(range(12))
    compute(blocks, make_sequence(tokens))
    compute(blocks, make_sequence(tokens, b"kind"))
    assert cached_tokens(blocks, [*tokens, 1], b"rude") == 0
    assert cached_tokens(blocks, [*tokens, 1], b"kind") == 12
    assert cached_tokens(blocks, [*tokens, 1]) == 12


def test_steered_and_unsteered_hold_different_blocks() -> None:
    blocks = BlockManager(num_blocks=32, block_size=4)
    plain, steered = make_sequence(list(range(9))), make_sequence(list(range(9)), b"kind")
    compute(blocks, plain)
    blocks.match_prefix(steered)
    compute(blocks, steered)
    assert not set(plain.block_table) & set(steered.block_table)
    blocks.check_integrity([plain, steered])


@pytest.mark.parametrize(("prompt_length", "reusable"), [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8)])
def test_a_probes_content_is_always_computed(prompt_length: int, reusable: int) -> None:
    """The token before the content is computed too, since it predicts the first content token."""
    blocks = BlockManager(num_blocks=32, block_size=4)
    tokens = list(range(16))
    compute(blocks, make_sequence(tokens))
    probe = Probe(tokens[:prompt_length], tokens[prompt_length:])
    sequence = build_probe_sequence(probe, 0.0, 1, None)
    blocks.match_prefix(sequence)
    assert sequence.num_computed_tokens == reusable


def test_sharing_and_freeing_keep_the_reference_counts_right() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    first, second = make_sequence(list(range(9))), make_sequence(list(range(10)))
    compute(blocks, first)
    blocks.match_prefix(second)
    compute(blocks, second)
    assert first.block_table[:2] == second.block_table[:2]
    blocks.check_integrity([first, second])
    blocks.free(first)
    blocks.check_integrity([second])
    assert blocks.num_free_blocks == 5
    blocks.free(second)
    blocks.check_integrity([])
    assert blocks.num_free_blocks == 8


def test_the_least_recently_used_content_is_overwritten_first() -> None:
    blocks = BlockManager(num_blocks=4, block_size=4)
    for start in (0, 100):
        sequence = make_sequence(list(range(start, start + 8)))
        compute(blocks, sequence)
        blocks.free(sequence)
    compute(blocks, make_sequence(list(range(200, 206))))  # takes the first sequence's two blocks
    assert cached_tokens(blocks, [*range(8), 1]) == 0
    assert cached_tokens(blocks, [*range(100, 108), 1]) == 8


def test_a_start_needs_no_free_blocks_for_cached_blocks_in_use() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    held, cached = make_sequence(list(range(8))), make_sequence(list(range(100, 108)))
    compute(blocks, held)
    compute(blocks, cached)
    blocks.free(cached)
    assert blocks.num_blocks_to_start(make_sequence([*range(8), 1])) == 1
    assert blocks.num_blocks_to_start(make_sequence([*range(100, 108), 1])) == 3


def test_discarded_content_is_not_found_again() -> None:
    blocks = BlockManager(num_blocks=8, block_size=4)
    sequence = make_sequence(list(range(8)))
    compute(blocks, sequence)
    blocks.discard(sequence)
    assert cached_tokens(blocks, list(range(9))) == 0
    blocks.check_integrity([sequence])


def test_it_allocates_all_blocks_or_none() -> None:
    blocks = BlockManager(num_blocks=3, block_size=4)
    sequence = make_sequence(list(range(13)))
    assert not blocks.allocate(sequence, 13)
    assert sequence.block_table == []
    assert blocks.num_free_blocks == 3


def test_hashes_differ_between_processes() -> None:
    one, other = (BlockManager(4, 4) for _ in range(2))
    first, second = make_sequence(list(range(8))), make_sequence(list(range(8)))
    compute(one, first)
    compute(other, second)
    assert first.block_hashes != second.block_hashes


def test_check_integrity_detects_a_lost_block() -> None:
    blocks = BlockManager(num_blocks=4, block_size=4)
    sequence = make_sequence(list(range(8)))
    compute(blocks, sequence)
    sequence.block_table.pop()
    with pytest.raises(RuntimeError, match="reference counts"):
        blocks.check_integrity([sequence])

"""Tests which sequence holds which KV cache block, and which sequences share blocks. Without tensors."""

import random

import numpy as np
import pytest

from inference.interface.requests import GenerationRequest
from inference.scheduling.block_manager import BlockManager
from inference.scheduling.probe import Probe
from inference.scheduling.sequence import Sequence, build_probe_sequence, build_sequences
from inference.scheduling.steering import BlockVectors, Condition, Projection, Reader, Steering


def make_vectors(value: float, *blocks: int) -> BlockVectors:
    return BlockVectors(blocks or (0,), np.full((len(blocks) or 1, 2), value, np.float32))


def make_sequence(
    token_ids: list[int], steering: Steering | None = None, condition: Condition | None = None
) -> Sequence:
    request = GenerationRequest("r", token_ids, max_tokens=1000)
    [sequence] = build_sequences(request, 0.0, iter([0]), random.Random(0), steering, condition)
    return sequence


def compute(blocks: BlockManager, sequence: Sequence) -> None:
    """Allocates and computes all tokens of a sequence, as a step would."""
    assert blocks.allocate(sequence, sequence.num_tokens)
    before, sequence.num_computed_tokens = sequence.num_computed_tokens, sequence.num_tokens
    blocks.register(sequence, before)


def cached_tokens(blocks: BlockManager, token_ids: list[int], steering: Steering | None = None) -> int:
    """How many tokens of a new sequence are in the prefix cache. Frees the sequence again."""
    sequence = make_sequence(token_ids, steering)
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
    compute(blocks, make_sequence(tokens, Steering(make_vectors(1.0))))
    assert cached_tokens(blocks, [*tokens, 1], Steering(make_vectors(2.0))) == 0
    assert cached_tokens(blocks, [*tokens, 1], Steering(make_vectors(1.0, 1))) == 0
    assert cached_tokens(blocks, [*tokens, 1], Steering(make_vectors(1.0))) == 12
    assert cached_tokens(blocks, [*tokens, 1]) == 12


def every_change() -> list[Steering]:
    """Different changes of the activations, all at the same positions."""
    one, other = make_vectors(1.0), make_vectors(2.0)
    pair, turned = Projection(one, other), Projection(other, one)
    added = [None, one, other, make_vectors(1.0, 1), make_vectors(1.0, 0, 1)]
    projections = [(), (pair,), (turned,), (pair, turned), (turned, pair)]
    return [Steering(add, project) for add in added for project in projections if add or project]


def test_every_difference_in_what_is_changed_keeps_blocks_apart() -> None:
    blocks = BlockManager(num_blocks=256, block_size=4)
    tokens = list(range(8))
    for steering in every_change():
        assert cached_tokens(blocks, [*tokens, 1], steering) == 0
        compute(blocks, make_sequence(tokens, steering))
    assert cached_tokens(blocks, [*tokens, 1]) == 0
    for steering in every_change():
        assert cached_tokens(blocks, [*tokens, 1], steering) == 8


@pytest.mark.parametrize(
    ("computed", "found", "cached"),
    [
        ((1, None), (1, None), 16),
        ((1, None), (1, 16), 16),  # the same positions of the cached blocks are steered
        ((1, None), (1, 30), 16),
        ((1, 10), (1, None), 8),
        ((1, 8), (1, None), 8),
        ((10, None), (1, None), 0),
        ((10, None), (9, None), 8),
        ((10, None), (12, None), 8),
        ((10, 11), (10, 12), 8),
        ((4, 8), (4, 8), 16),
        ((4, 8), (8, 12), 4),  # the same length, in another block
        ((5, 7), (4, 6), 4),  # the same length, elsewhere in the block
        ((16, None), (20, None), 16),  # nothing is steered
        ((16, None), (1, 1), 16),
    ],
)
def test_blocks_are_shared_only_if_the_same_positions_are_steered(
    computed: tuple[int, int | None], found: tuple[int, int | None], cached: int
) -> None:
    blocks = BlockManager(num_blocks=32, block_size=4)
    tokens = list(range(16))

    def steer(first: int, end: int | None) -> Steering:
        return Steering(make_vectors(1.0), first=first, end=end)

    compute(blocks, make_sequence(tokens, steer(*computed)))
    assert cached_tokens(blocks, [*tokens, 1], steer(*found)) == cached


@pytest.mark.parametrize(("first", "end", "cached"), [(1, None, 0), (1, 9, 0), (7, None, 4), (12, None, 12)])
def test_blocks_before_the_first_steered_position_are_shared_with_unsteered_sequences(
    first: int, end: int | None, cached: int
) -> None:
    blocks = BlockManager(num_blocks=32, block_size=4)
    tokens = list(range(12))
    steering = Steering(make_vectors(1.0), first=first, end=end)
    compute(blocks, make_sequence(tokens))
    assert cached_tokens(blocks, [*tokens, 1], steering) == cached
    blocks = BlockManager(num_blocks=32, block_size=4)
    compute(blocks, make_sequence(tokens, steering))
    assert cached_tokens(blocks, [*tokens, 1]) == cached


@pytest.mark.parametrize("met", [True, False])
def test_blocks_under_a_condition_are_shared_as_its_outcome_demands(met: bool) -> None:
    blocks = BlockManager(num_blocks=32, block_size=4)
    tokens = list(range(16))
    steering = Steering(make_vectors(1.0), first=10)
    condition = Condition(Reader(make_vectors(3.0), 0.0, 1.0, end=10), above=0.0, below=None)
    sequence = make_sequence(tokens[:10], steering, condition)
    compute(blocks, sequence)
    condition.met = met
    for token_id in tokens[10:]:
        sequence.append(token_id)
        compute(blocks, sequence)
    assert cached_tokens(blocks, [*tokens, 1], steering) == (16 if met else 8)
    assert cached_tokens(blocks, [*tokens, 1]) == (8 if met else 16)


def test_positions_to_read_are_not_taken_from_the_cache() -> None:
    blocks = BlockManager(num_blocks=32, block_size=4)
    tokens = list(range(16))
    compute(blocks, make_sequence(tokens))
    condition = Condition(Reader(make_vectors(3.0), 0.0, 1.0, end=16), above=0.0, below=None)
    undecided = make_sequence([*tokens, 1], Steering(make_vectors(1.0), first=17), condition)
    blocks.match_prefix(undecided)
    assert undecided.num_computed_tokens == 0
    blocks.free(undecided)
    condition.met = False
    blocks.match_prefix(undecided)
    assert undecided.num_computed_tokens == 16
    probe = Probe(tokens[:10], tokens[10:], readers=(Reader(make_vectors(3.0), 0.0, 1.0, first=10),))
    sequence = build_probe_sequence(probe, 0.0, 1)
    blocks.match_prefix(sequence)
    assert sequence.num_computed_tokens == 8


def test_steered_and_unsteered_hold_different_blocks() -> None:
    blocks = BlockManager(num_blocks=32, block_size=4)
    plain, steered = (
        make_sequence(list(range(9)), steering) for steering in (None, Steering(make_vectors(1.0)))
    )
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
    sequence = build_probe_sequence(probe, 0.0, 1)
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

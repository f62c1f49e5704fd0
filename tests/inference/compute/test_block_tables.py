"""The block tables on the device equal those of the sequences, whatever happened before."""

import random

import pytest
import torch

from inference.compute.block_tables import BlockTables
from inference.compute.transfer import upload
from inference.interface.requests import GenerationRequest
from inference.scheduling.sequence import Sequence, build_sequences

DEVICE = torch.get_default_device()


def make_sequence(number: int, blocks: list[int]) -> Sequence:
    request = GenerationRequest(f"r{number}", [1], max_tokens=1)
    [sequence] = build_sequences(request, 0.0, iter([number]), random.Random(0))
    sequence.block_table.extend(blocks)
    return sequence


def clear(sequence: Sequence) -> None:
    """What the block manager does when it frees a sequence's blocks."""
    sequence.block_table.clear()
    sequence.block_table_version += 1


def send(tables: BlockTables, batch: list[Sequence]) -> tuple[list[list[int]], int]:
    """Returns the rows, cut to each sequence's length, and how many blocks were sent."""
    arrays = tables.changes(batch)
    rows = tables.apply(batch, upload(arrays, DEVICE)).tolist()
    assert len({len(row) for row in rows}) == 1
    lengths = [len(sequence.block_table) for sequence in batch]
    return [row[:length] for row, length in zip(rows, lengths, strict=True)], len(
        arrays.get("new_blocks", [])
    )


def test_only_new_blocks_are_sent() -> None:
    tables = BlockTables(DEVICE)
    first, second = make_sequence(0, [5, 9, 2]), make_sequence(1, [7])
    assert send(tables, [first, second]) == ([[5, 9, 2], [7]], 4)
    assert send(tables, [second, first]) == ([[7], [5, 9, 2]], 0)
    second.block_table.append(3)
    assert send(tables, [first, second]) == ([[5, 9, 2], [7, 3]], 1)


def test_blocks_that_changed_are_sent_again() -> None:
    tables = BlockTables(DEVICE)
    sequence = make_sequence(0, [5, 9, 2])
    send(tables, [sequence])
    clear(sequence)
    sequence.block_table.extend([5, 1, 4])
    assert send(tables, [sequence]) == ([[5, 1, 4]], 3)


def test_a_step_in_two_batches_sends_its_blocks_once() -> None:
    tables = BlockTables(DEVICE)
    decodes = [make_sequence(i, [i, i + 100]) for i in range(8)]
    for number in range(3):
        probe = make_sequence(8 + number, [3])
        assert send(tables, decodes)[1] == (16 if number == 0 else 0)
        assert send(tables, [probe]) == ([[3]], 1)


def test_rows_of_ended_sequences_are_given_away() -> None:
    tables = BlockTables(DEVICE)
    for number in range(500):
        send(tables, [make_sequence(number, [number])])
    assert tables.table.num_rows <= 16


def test_a_failed_step_changes_nothing() -> None:
    tables = BlockTables(DEVICE)
    sequence = make_sequence(0, [5, 9])
    tables.changes([sequence])  # and the upload fails
    assert send(tables, [sequence]) == ([[5, 9]], 2)


@pytest.mark.parametrize("seed", range(4))
def test_random_batches(seed: int) -> None:
    rng = random.Random(seed)
    tables = BlockTables(DEVICE)
    sequences: list[Sequence] = []
    for number in range(200):
        sequences.append(make_sequence(number, []))
        for sequence in sequences:
            if rng.random() < 0.1:
                clear(sequence)
            if rng.random() < 0.5 or not sequence.block_table:
                sequence.block_table.extend(rng.randrange(1000) for _ in range(rng.choice([1, 1, 1, 90])))
        batch = rng.sample(sequences, rng.randint(1, len(sequences)))
        if rng.random() < 0.2:
            tables.changes(batch)
        assert send(tables, batch)[0] == [sequence.block_table for sequence in batch]
        sequences = [sequence for sequence in sequences if rng.random() < 0.9]

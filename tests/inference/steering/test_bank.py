"""Bank rows: equal vectors share a row, the least recently used row is reused, no row holds wrong vectors."""

from unittest.mock import DEFAULT, Mock, patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.compute.transfer import upload
from inference.scheduling.steering import BlockVectors
from inference.steering.bank import SteeringBank

NUM_BLOCKS = 5
HIDDEN_SIZE = 3


def make_bank(num_rows: int) -> SteeringBank:
    return SteeringBank(num_rows, NUM_BLOCKS, HIDDEN_SIZE, torch.device("cpu"))


def make_vectors(value: float, blocks: tuple[int, ...] = (1, 4)) -> BlockVectors:
    """Different in each entry."""
    entries = np.arange(len(blocks) * HIDDEN_SIZE, dtype=np.float32).reshape(-1, HIDDEN_SIZE)
    return BlockVectors(blocks, np.float32(value) + entries / 10)


def place(bank: SteeringBank, *wanted: BlockVectors) -> list[int]:
    """The row of each."""
    rows = bank.place(wanted)
    return [rows[vectors.key] for vectors in wanted]


def holds(bank: SteeringBank, row: int, vectors: BlockVectors) -> bool:
    """Whether the row has the vectors at their decoder blocks, and zeros at all others."""
    expected = np.zeros((NUM_BLOCKS, HIDDEN_SIZE), np.float32)
    expected[list(vectors.blocks)] = vectors.vectors
    return np.array_equal(bank.vectors[:, row].numpy(), expected)


def test_a_row_holds_what_was_placed_in_it() -> None:
    bank = make_bank(4)
    wanted = [make_vectors(1.0), make_vectors(2.0, (0,)), make_vectors(3.0, tuple(range(NUM_BLOCKS)))]
    rows = place(bank, *wanted)
    assert len({0, *rows}) == 4
    assert all(holds(bank, row, vectors) for row, vectors in zip(rows, wanted, strict=True))
    assert not bank.vectors[:, 0].any()


def test_nothing_wanted_gives_no_row() -> None:
    assert make_bank(1).place([]) == {}


def test_equal_vectors_share_a_row() -> None:
    bank = make_bank(4)
    first, again, other = place(bank, make_vectors(1.0), make_vectors(1.0), make_vectors(2.0))
    assert first == again != other
    assert place(bank, make_vectors(1.0)) == [first]
    assert len(place(bank, *map(make_vectors, range(3, 5)))) == 2
    assert holds(bank, first, make_vectors(1.0))  # two of the four rows were left


def test_vectors_that_differ_in_one_bit_or_in_a_block_do_not_share() -> None:
    bank = make_bank(4)
    changed, moved = make_vectors(1.0), make_vectors(1.0, (1, 3))
    changed.vectors[1, 2] = np.nextafter(changed.vectors[1, 2], np.float32(np.inf))
    assert len(set(place(bank, make_vectors(1.0), changed, moved))) == 3


def test_placed_vectors_stay_in_their_row_and_are_not_uploaded_again() -> None:
    bank = make_bank(2)
    rows = place(bank, make_vectors(1.0), make_vectors(2.0))
    with patch("inference.steering.bank.upload", side_effect=RuntimeError("uploaded again")):
        assert place(bank, make_vectors(2.0), make_vectors(1.0)) == rows[::-1]


def test_the_least_recently_used_row_is_reused() -> None:
    bank = make_bank(3)
    rows = place(bank, *map(make_vectors, range(3)))
    place(bank, make_vectors(0))
    assert place(bank, make_vectors(3)) == [rows[1]]
    assert place(bank, make_vectors(4)) == [rows[2]]
    assert place(bank, make_vectors(0)) == [rows[0]]
    assert place(bank, make_vectors(5)) == [rows[1]]
    expected = zip(rows, (0, 5, 4), strict=True)
    assert all(holds(bank, row, make_vectors(value)) for row, value in expected)


def test_vectors_that_are_wanted_together_do_not_replace_each_other() -> None:
    bank = make_bank(2)
    rows = place(bank, make_vectors(0), make_vectors(1))
    assert place(bank, make_vectors(2), make_vectors(0)) == [rows[1], rows[0]]
    assert holds(bank, rows[0], make_vectors(0))
    assert holds(bank, rows[1], make_vectors(2))


def test_a_reused_row_is_zero_at_the_blocks_of_before() -> None:
    bank = make_bank(1)
    for blocks in [(0, 1, 4), (1, 2), (3,), (0, 4), (0, 1, 2, 3, 4), (2,)]:
        vectors = make_vectors(1.0, blocks)
        assert place(bank, vectors) == [1]
        assert holds(bank, 1, vectors)


def test_too_many_vectors_are_an_error_and_change_nothing() -> None:
    bank = make_bank(2)
    rows = place(bank, make_vectors(1), make_vectors(2))
    with pytest.raises(ValueError, match="3 vectors do not fit into a bank of 2 rows"):
        bank.place(map(make_vectors, (3, 4, 5)))
    with patch("inference.steering.bank.upload", side_effect=RuntimeError("replaced")):
        assert place(bank, make_vectors(1), make_vectors(2)) == rows


@pytest.mark.parametrize("fails", ["upload", "copy"])
def test_a_failed_upload_leaves_no_wrong_vectors(fails: str) -> None:
    bank = make_bank(2)
    rows = place(bank, make_vectors(1, (0, 1)), make_vectors(2, (3,)))
    name = {"upload": "inference.steering.bank.upload", "copy": "torch.Tensor.index_copy_"}[fails]
    with patch(name, side_effect=RuntimeError("out of memory")), pytest.raises(RuntimeError):
        bank.place([make_vectors(3, (2,)), make_vectors(2, (3,))])
    assert place(bank, make_vectors(2, (3,))) == [rows[1]]
    assert holds(bank, rows[1], make_vectors(2, (3,)))
    assert place(bank, make_vectors(4, (4,))) == [rows[0]]
    assert holds(bank, rows[0], make_vectors(4, (4,)))
    assert place(bank, make_vectors(1, (0, 1)), make_vectors(2, (3,))) == rows
    assert holds(bank, rows[0], make_vectors(1, (0, 1)))


def test_a_copy_that_fails_halfway_leaves_no_stale_vectors() -> None:
    bank = make_bank(1)
    place(bank, make_vectors(1, (0,)))
    copy = torch.Tensor.index_copy_

    def copy_and_fail(*arguments: object) -> None:
        copy(*arguments)
        raise RuntimeError("the device is on fire")

    with patch("torch.Tensor.index_copy_", copy_and_fail), pytest.raises(RuntimeError):
        bank.place([make_vectors(2, (1, 2))])
    assert place(bank, make_vectors(3, (2, 4))) == [1]
    assert holds(bank, 1, make_vectors(3, (2, 4)))


NUM_ROWS = 4
BLOCKS = [(0,), (1, 4), (0, 1, 2), (3,), (2, 3, 4), (0, 1, 2, 3, 4)]
CALLS = st.lists(st.lists(st.integers(0, 7), max_size=6), max_size=40)


def vectors_of(value: int) -> BlockVectors:
    return make_vectors(value, BLOCKS[value % len(BLOCKS)])


def place_and_check(bank: SteeringBank, values: list[int]) -> None:
    rows = place(bank, *map(vectors_of, values))
    assert 0 not in rows
    assert len(set(rows)) == len(set(values))
    assert all(holds(bank, row, vectors_of(value)) for row, value in zip(rows, values, strict=True))
    assert not bank.vectors[:, 0].any()


@given(calls=CALLS)
@settings(deadline=None)
def test_random_calls_upload_only_what_is_not_among_the_most_recently_used(calls: list[list[int]]) -> None:
    bank = make_bank(NUM_ROWS)
    address = bank.vectors.data_ptr()
    used: list[int] = []  # the most recently used last
    for values in calls:
        ordered = list(dict.fromkeys(values))
        missing = [value for value in ordered if value not in used[-NUM_ROWS:]]
        with patch("inference.steering.bank.upload", side_effect=upload) as uploads:
            if len(ordered) > NUM_ROWS:
                with pytest.raises(ValueError, match="do not fit"):
                    place(bank, *map(vectors_of, values))
                continue
            place_and_check(bank, values)
        assert uploads.call_count == len(missing)
        found = [value for value in ordered if value not in missing]
        used = [value for value in used if value not in ordered] + found + missing
    assert bank.vectors.data_ptr() == address


@given(calls=CALLS, data=st.data())
@settings(deadline=None)
def test_no_failed_upload_makes_a_later_row_wrong(calls: list[list[int]], data: st.DataObject) -> None:
    bank = make_bank(NUM_ROWS)
    for values in calls:
        fails = data.draw(st.lists(st.booleans(), min_size=NUM_ROWS, max_size=NUM_ROWS))
        effects = [RuntimeError("out of memory") if each else DEFAULT for each in fails]
        wanted = values[:NUM_ROWS]
        with patch("inference.steering.bank.upload", Mock(wraps=upload, side_effect=effects)) as uploads:
            try:
                place_and_check(bank, wanted)
            except RuntimeError:
                assert fails[uploads.call_count - 1]
            else:
                assert not any(fails[: uploads.call_count])
    place_and_check(bank, [0, 1, 2, 3])

"""Bank rows: equal vectors share a row, a row without users is free, and no row gets wrong vectors."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.scheduling.probe import Array32
from inference.steering.bank import SteeringBank

BLOCKS = (1, 4)
HIDDEN_SIZE = 3


def make_bank(num_rows: int) -> SteeringBank:
    return SteeringBank(num_rows, BLOCKS, HIDDEN_SIZE, torch.device("cpu"))


def make_vectors(value: float) -> Array32:
    """[blocks, hidden_size], different in each entry."""
    return np.float32(value) + np.arange(6, dtype=np.float32).reshape(2, 3) / 10


def holds(bank: SteeringBank, row: int, vectors: Array32) -> bool:
    return np.array_equal(bank.vectors[:, row].numpy(), vectors)


def test_a_row_holds_what_it_was_acquired_for() -> None:
    bank = make_bank(4)
    row = bank.acquire(make_vectors(1.0))
    assert row is not None
    assert holds(bank, row, make_vectors(1.0))
    assert bank.num_free_rows == 3


def test_equal_vectors_share_a_row() -> None:
    bank = make_bank(4)
    first, again, other = (bank.acquire(make_vectors(value)) for value in (1.0, 1.0, 2.0))
    assert first == again != other
    assert bank.num_free_rows == 2


def test_vectors_that_differ_in_one_bit_do_not_share() -> None:
    bank = make_bank(4)
    changed = make_vectors(1.0)
    changed[1, 2] = np.nextafter(changed[1, 2], np.float32(np.inf))
    assert bank.acquire(make_vectors(1.0)) != bank.acquire(changed)


def test_a_row_is_free_when_its_last_user_releases_it() -> None:
    bank = make_bank(4)
    row = bank.acquire(make_vectors(1.0), num_users=3)
    assert row is not None
    bank.acquire(make_vectors(1.0))
    for _ in range(3):
        bank.release(row)
        assert bank.num_free_rows == 3
        assert holds(bank, row, make_vectors(1.0))
    bank.release(row)
    assert bank.num_free_rows == 4


def test_a_freed_row_is_reused_for_other_vectors() -> None:
    bank = make_bank(1)
    row = bank.acquire(make_vectors(1.0))
    assert row is not None
    bank.release(row)
    assert bank.acquire(make_vectors(2.0)) == row
    assert holds(bank, row, make_vectors(2.0))


def test_a_full_bank_returns_none_but_still_shares_rows() -> None:
    bank = make_bank(2)
    rows = [bank.acquire(make_vectors(value)) for value in (1.0, 2.0)]
    assert bank.acquire(make_vectors(3.0)) is None
    assert bank.acquire(make_vectors(2.0)) == rows[1]
    assert holds(bank, rows[0], make_vectors(1.0))
    assert holds(bank, rows[1], make_vectors(2.0))


@given(actions=st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 3)), max_size=60))
@settings(deadline=None)
def test_random_acquires_and_releases_keep_every_row_right(actions: list[tuple[bool, int, int]]) -> None:
    num_rows = 4
    bank = make_bank(num_rows)
    address = bank.vectors.data_ptr()
    users: dict[int, int] = {}  # number of users of each value
    rows: dict[int, int] = {}
    for acquires, value, count in actions:
        if acquires:
            row = bank.acquire(make_vectors(value), count)
            if row is None:
                assert value not in users
                assert len(users) == num_rows
                continue
            assert rows.get(value, row) == row
            rows[value], users[value] = row, users.get(value, 0) + count
        elif value in users:
            bank.release(rows[value])
            users[value] -= 1
            if users[value] == 0:
                del users[value], rows[value]
        assert bank.num_free_rows == num_rows - len(users)
        assert len({0, *rows.values()}) == len(rows) + 1
        assert all(holds(bank, row, make_vectors(value)) for value, row in rows.items())
        assert not bank.vectors[:, 0].any()
    assert bank.vectors.data_ptr() == address
    for value, row in rows.items():
        for _ in range(users[value]):
            bank.release(row)
    assert bank.num_free_rows == num_rows

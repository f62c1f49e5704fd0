"""Which actors are started and stopped."""

import pytest

from app.cluster.members import Member, Name, next_changes, parse_name


def member(number: int, digest: str = "new", *, serving: bool = True, failed: bool = False) -> Member:
    return Member(Name("worker", number, digest, "m"), serving and not failed, failed=failed)


def stopping(number: int, digest: str = "new") -> Member:
    return Member(Name("worker", number, digest, "m"), serving=False, stopping=True)


def changes(members: list[Member], count: int) -> tuple[list[int], list[int]]:
    """The numbers that are created, and those that are stopped."""
    found = next_changes(members, count, "new")
    return list(found.create), [name.number for name in found.stop]


@pytest.mark.parametrize("model", ["llama", "org/a:b c", ""])
def test_a_name_says_all(model: str) -> None:
    name = Name("worker", 12, "0a1b", model)
    assert parse_name(str(name)) == name


@pytest.mark.parametrize("text", ["controller", "other:1:a:b", "worker:x:a:b", "worker:1"])
def test_other_actors_have_no_such_name(text: str) -> None:
    assert parse_name(text) is None


def test_missing_members_are_created_with_the_first_free_numbers() -> None:
    assert changes([], 2) == ([1, 2], [])
    assert changes([member(2)], 3) == ([1, 3], [])


def test_surplus_members_are_stopped_first_those_that_do_not_serve() -> None:
    assert changes([member(1, serving=False), member(2), member(3)], 2) == ([], [1])
    assert changes([member(1), member(2), member(3)], 1) == ([], [2, 3])


def test_a_member_that_stops_keeps_its_place() -> None:
    assert changes([member(1), stopping(2)], 2) == ([], [])
    assert changes([member(1)], 2) == ([2], [])


def test_outdated_members_are_replaced_one_at_a_time() -> None:
    assert changes([member(1, "old"), member(2, "old")], 2) == ([], [2])
    assert changes([member(1, "old"), stopping(2, "old")], 2) == ([], [])
    assert changes([member(1, "old")], 2) == ([2], [])
    assert changes([member(1, "old"), member(2, serving=False)], 2) == ([], [])
    assert changes([member(1, "old"), member(2)], 2) == ([], [1])


def test_outdated_members_that_do_not_work_are_replaced_at_once() -> None:
    broken = [member(1, "old", failed=True), member(2, "old", failed=True)]
    assert changes(broken, 2) == ([], [1, 2])


def test_a_removed_model_loses_its_workers() -> None:
    assert changes([member(1, "old"), member(2, "old", failed=True)], 0) == ([], [2, 1])

"""How the number of workers follows the load."""

import pytest

from app.cluster.scaling import Load, Rules, Scale, scaled

RULES = Rules(least=1, most=3, max_running=8, grow_after=5, shrink_after=60)
IDLE, BUSY, FULL = Load(0, 0), Load(16, 0), Load(16, 3)


def follow(scale: Scale, loads: list[tuple[float, Load]], serving: int | None = None) -> Scale:
    """The scale after looks at these times. `serving`: None: all workers."""
    for now, load in loads:
        scale = scaled(scale, load, scale.count if serving is None else serving, RULES, now)
    return scale


def test_a_worker_is_added_when_requests_have_waited_without_a_break() -> None:
    assert follow(Scale(1), [(0, FULL), (4.9, FULL)]).count == 1
    assert follow(Scale(1), [(0, FULL), (5, FULL)]).count == 2
    assert follow(Scale(1), [(0, FULL), (3, BUSY), (4, FULL), (8.9, FULL)]).count == 1


def test_one_worker_at_a_time_and_none_while_another_one_starts() -> None:
    grown = follow(Scale(1), [(0, FULL), (5, FULL)])
    assert follow(grown, [(6, FULL), (100, FULL)], serving=1).count == 2
    assert follow(grown, [(6, FULL), (11, FULL)]).count == 3


def test_never_more_than_the_most_or_fewer_than_the_least() -> None:
    assert follow(Scale(3), [(0, FULL), (100, FULL)]).count == 3
    assert follow(Scale(1), [(0, IDLE), (1000, IDLE)]).count == 1
    assert follow(Scale(7), [(0, IDLE)]).count == 3
    assert follow(Scale(0), [(0, IDLE)]).count == 1


def test_a_worker_is_removed_after_a_long_calm() -> None:
    assert follow(Scale(3), [(0, IDLE), (59, IDLE)]).count == 3
    assert follow(Scale(3), [(0, IDLE), (60, IDLE)]).count == 2
    assert follow(Scale(3), [(0, IDLE), (60, IDLE), (61, IDLE), (120, IDLE)]).count == 2
    assert follow(Scale(3), [(0, IDLE), (30, FULL), (31, IDLE), (60, IDLE)]).count == 3


@pytest.mark.parametrize(("running", "count"), [(8, 2), (9, 3)])
def test_calm_is_when_half_of_the_others_is_enough(running: int, count: int) -> None:
    assert follow(Scale(3), [(0, Load(running, 0)), (60, Load(running, 0))]).count == count


def test_no_worker_is_removed_while_another_one_is_down() -> None:
    assert follow(Scale(2), [(0, IDLE), (100, IDLE)], serving=1).count == 2

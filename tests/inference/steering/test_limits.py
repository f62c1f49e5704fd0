"""Doses are lowered until answers are fluent, and no allowed strength makes answers loop."""

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from inference.scheduling.probe import Work
from inference.steering.answers import Answers, Setting
from inference.steering.directions import Direction
from inference.steering.limits import TunedDose, limit
from inference.steering.measurements import HeldOutDirections
from tests.inference.steering.conftest import NORMS, make_direction
from tests.inference.steering.test_tuning import Curve

INFINITE = float("inf")


class Sheet:
    """Answers at once: as `down` says for negative strengths, and as `up` says for positive ones."""

    def __init__(self, down: Curve, up: Curve) -> None:
        self._curves = {-1.0: down, 1.0: up}
        self.asked: list[float] = []
        """The doses, with their signs."""

    def ask_all(self, settings: Sequence[Setting]) -> Generator[Work, None, list[Answers]]:
        yield []
        return [self._answer(setting.direction, setting.strength) for setting in settings]

    def answers(self, dose: float) -> Answers:
        """`dose`: with its sign."""
        return self._curves[-1.0 if dose < 0 else 1.0].answers(abs(dose), float(np.sign(dose)))

    def _answer(self, direction: Direction, strength: float) -> Answers:
        dose = float(direction.components(strength)[0, 0]) / NORMS[direction.blocks[0]]
        self.asked.append(dose)
        return self.answers(dose)


def limited(
    sheet: Sheet, down: float = 0.2, up: float = 0.3, too_much: float = INFINITE
) -> tuple[Direction, dict[float, Answers]]:
    direction = make_direction(1, 1.0)
    directions = HeldOutDirections(direction, [direction], [0])
    tuned = [
        TunedDose(-1.0, down, sheet.answers(-down), INFINITE),
        TunedDose(1.0, up, sheet.answers(up), too_much),
    ]
    work = limit(directions, tuned, sheet.answers(0.0), 0.0, sheet)
    while True:
        try:
            next(work)
        except StopIteration as end:
            result, answers = end.value
            assert result.by_fold[0].lengths == result.full.lengths
            return result.full, answers


def doses(direction: Direction) -> tuple[float, float]:
    """Of strengths -1 and 1."""
    up = direction.lengths[0] / NORMS[direction.blocks[0]]
    return up * direction.down_scale, up


def test_fluent_doses_are_kept_with_the_largest_strengths() -> None:
    sheet = Sheet(Curve(0.2, INFINITE), Curve(0.3, INFINITE))
    direction, answers = limited(sheet)
    assert doses(direction) == pytest.approx((0.2, 0.3))
    assert (direction.max_down_strength, direction.max_strength) == (2.0, 2.0)
    assert answers.keys() == {-1.0, 0.0, 1.0}
    assert answers[0.0].readings.mean() == 0.0
    assert answers[1.0].readings.mean() > 0.0 > answers[-1.0].readings.mean()


def test_a_dose_is_lowered_until_its_answers_are_fluent() -> None:
    direction, answers = limited(Sheet(Curve(0.2, INFINITE), Curve(0.3, 0.2)))
    down, up = doses(direction)
    assert down == pytest.approx(0.2)
    assert up == pytest.approx(0.3 * 0.6)
    assert answers[1.0].repetition == 0.0
    assert direction.max_strength == 1.0  # 1.125 times this dose loops


@pytest.mark.parametrize(("loops", "cap"), [(1.1, 1.0), (1.2, 1.125), (1.3, 1.25), (1.7, 1.5), (3.0, 2.0)])
def test_the_largest_strength_is_the_last_one_before_answers_loop(loops: float, cap: float) -> None:
    direction, _ = limited(Sheet(Curve(0.2, loops * 0.2), Curve(0.3, loops * 0.3)))
    assert (direction.max_down_strength, direction.max_strength) == (cap, cap)


class Repeating(Curve):
    """The share of repeated trigrams grows with the dose, and is `share` at the dose 1."""

    def __init__(self, half: float, share: float) -> None:
        super().__init__(half, INFINITE)
        self._share = share

    def answers(self, dose: float, sign: float = 1.0) -> Answers:
        answers = super().answers(dose, sign)
        return replace(answers, repetitions=np.full_like(answers.readings, self._share * dose))


@pytest.mark.parametrize(
    ("share", "cap"),
    [
        (0.16, 1.0),  # fluent at 1, and more than seven tenths of the limit
        (0.105, 1.125),  # 0.118 at 1.125
        (0.07, 1.5),  # 0.122 at 1.75
        (0.05, 2.0),
    ],
)
def test_strengths_above_1_may_use_only_a_part_of_the_limits(share: float, cap: float) -> None:
    sheet = Sheet(Repeating(0.2, share / 0.2), Repeating(0.3, share / 0.3))
    direction, _ = limited(sheet)
    assert doses(direction) == pytest.approx((0.2, 0.3))
    assert (direction.max_down_strength, direction.max_strength) == (cap, cap)


def test_a_dose_that_looped_while_tuning_limits_the_largest_strength() -> None:
    """Even if these answers happen to be fluent."""
    direction, _ = limited(Sheet(Curve(0.2, INFINITE), Curve(0.3, INFINITE)), too_much=1.4 * 0.3)
    assert (direction.max_down_strength, direction.max_strength) == (2.0, 1.25)


def test_larger_strengths_are_not_tried_beyond_one_that_loops() -> None:
    sheet = Sheet(Curve(0.2, 0.2 * 1.4), Curve(0.3, INFINITE))
    limited(sheet)
    assert sheet.asked == pytest.approx([-0.225, 0.3375, -0.25, 0.375, -0.3, 0.45, 0.525, 0.6])


def test_no_larger_strength_is_tried_if_strength_1_is_not_fluent() -> None:
    class Moody(Curve):
        """Loops up to a dose, and not beyond."""

        def answers(self, dose: float, sign: float = 1.0) -> Answers:
            return (Curve(0.3, 0.0) if 0 < dose <= 0.3 else Curve(0.3, INFINITE)).answers(dose, sign)

    sheet = Sheet(Curve(0.2, INFINITE), Moody(0.3, 0.0))
    direction, _ = limited(sheet)
    assert direction.max_strength == 1.0


def test_a_dose_that_is_never_fluent_becomes_so_small_that_it_has_no_effect() -> None:
    direction, _ = limited(Sheet(Curve(0.2, 1e-6), Curve(0.3, INFINITE)))
    down, up = doses(direction)
    assert 0 < down < 0.02
    assert up == pytest.approx(0.3)
    assert direction.max_down_strength == 1.0

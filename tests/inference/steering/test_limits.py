"""Doses are lowered until answers are fluent, and no allowed strength makes answers loop."""

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from inference.scheduling.probe import Work
from inference.steering.answers import Answers, Setting
from inference.steering.directions import Direction
from inference.steering.limits import Limited, TunedDose, limit
from inference.steering.measurements import HeldOutDirections
from tests.inference.steering.conftest import NORMS, STEERED_BLOCKS, make_direction
from tests.inference.steering.test_tuning import COUNT, Curve

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
    sheet: Sheet,
    down: float = 0.2,
    up: float = 0.3,
    too_much: float = INFINITE,
    blocks: tuple[tuple[int, ...], tuple[int, ...]] = (STEERED_BLOCKS, STEERED_BLOCKS),
) -> Limited:
    """`blocks`: of negative and of positive strengths."""
    lower, upper = (HeldOutDirections(one, [one], [0]) for one in (make_direction(1, 1.0, b) for b in blocks))
    plain = sheet.answers(0.0)
    read_elsewhere = replace(plain, readings=plain.readings + 7)
    work = limit(
        TunedDose(-1.0, lower, down, read_elsewhere, sheet.answers(-down), INFINITE),
        TunedDose(1.0, upper, up, plain, sheet.answers(up), too_much),
        0.0,
        sheet,
    )
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: Limited = end.value
            assert result.directions.by_fold[0].lengths == result.directions.full.lengths
            return result


def doses(direction: Direction) -> tuple[float, float]:
    """Of strengths -1 and 1."""
    up = direction.lengths[0] / NORMS[direction.blocks[0]]
    return up * direction.down_scale, up


def test_fluent_doses_are_kept_with_the_largest_strengths() -> None:
    sheet = Sheet(Curve(0.2, INFINITE), Curve(0.3, INFINITE))
    result = limited(sheet)
    direction, answers = result.directions.full, result.answers
    assert doses(direction) == pytest.approx((0.2, 0.3))
    assert (direction.max_down_strength, direction.max_strength) == (2.0, 2.0)
    assert result.plain_down.readings.mean() == 7.0
    assert answers.keys() == {-1.0, 0.0, 1.0}
    assert answers[0.0].readings.mean() == 0.0
    assert answers[1.0].readings.mean() > 0.0 > answers[-1.0].readings.mean()


@pytest.mark.parametrize(
    ("down", "up", "plain_down", "unmoved"),
    [
        (0.6, 0.6, 1.0, ()),
        (0.6, 0.3, 1.0, (1.0,)),
        (0.3, 0.3, 1.0, (-1.0, 1.0)),
        (0.0, 0.6, 0.2, ()),  # these cannot move
    ],
)
def test_strengths_that_move_too_few_answers_are_known(
    down: float, up: float, plain_down: float, unmoved: tuple[float, ...]
) -> None:
    """`down` and `up`: which share of the answers moves at strengths -1 and 1."""

    def answers(plain: float, share: float, change: float) -> Answers:
        readings = np.where(np.arange(COUNT) < share * COUNT, plain + change, plain)
        return replace(Curve(1.0, INFINITE).answers(0.0), readings=readings)

    result = Limited(
        HeldOutDirections(None, [], []),
        {-1.0: answers(plain_down, down, -0.6), 0.0: answers(0.0, 0.0, 0.0), 1.0: answers(0.0, up, 0.6)},
        answers(plain_down, 0.0, 0.0),
    )
    assert result.unmoved == unmoved


def test_a_dose_is_lowered_until_its_answers_are_fluent() -> None:
    result = limited(Sheet(Curve(0.2, INFINITE), Curve(0.3, 0.2)))
    direction, answers = result.directions.full, result.answers
    down, up = doses(direction)
    assert down == pytest.approx(0.2)
    assert up == pytest.approx(0.3 * 0.6)
    assert answers[1.0].repetition == 0.0
    assert direction.max_strength == 1.0  # 1.125 times this dose loops


@pytest.mark.parametrize(("loops", "cap"), [(1.1, 1.0), (1.2, 1.125), (1.3, 1.25), (1.7, 1.5), (3.0, 2.0)])
def test_the_largest_strength_is_the_last_one_before_answers_loop(loops: float, cap: float) -> None:
    direction = limited(Sheet(Curve(0.2, loops * 0.2), Curve(0.3, loops * 0.3))).directions.full
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
        (0.14, 1.0),  # at 1 less than its part of the limit, and more than seven tenths
        (0.105, 1.125),  # 0.118 at 1.125
        (0.07, 1.5),  # 0.122 at 1.75
        (0.05, 2.0),
    ],
)
def test_strengths_above_1_may_use_only_a_part_of_the_limits(share: float, cap: float) -> None:
    sheet = Sheet(Repeating(0.2, share / 0.2), Repeating(0.3, share / 0.3))
    direction = limited(sheet).directions.full
    assert doses(direction) == pytest.approx((0.2, 0.3))
    assert (direction.max_down_strength, direction.max_strength) == (cap, cap)


def test_a_dose_that_looped_while_tuning_limits_the_largest_strength() -> None:
    """Even if these answers happen to be fluent."""
    direction = limited(Sheet(Curve(0.2, INFINITE), Curve(0.3, INFINITE)), too_much=1.4 * 0.3).directions.full
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
    direction = limited(sheet).directions.full
    assert direction.max_strength == 1.0


def test_a_dose_that_is_never_fluent_becomes_so_small_that_it_has_no_effect() -> None:
    direction = limited(Sheet(Curve(0.2, 1e-6), Curve(0.3, INFINITE))).directions.full
    down, up = doses(direction)
    assert 0 < down < 0.02
    assert up == pytest.approx(0.3)
    assert direction.max_down_strength == 1.0


def test_strength_1_may_use_only_a_part_of_the_limits() -> None:
    """A dose that is fluent, but only just, is lowered a little: here by a tenth."""
    sheet = Sheet(Repeating(0.2, 0.16 / 0.2), Repeating(0.3, 0.16 / 0.3))
    direction = limited(sheet).directions.full
    assert doses(direction) == pytest.approx((0.9 * 0.2, 0.9 * 0.3))
    assert sheet.asked[:2] == pytest.approx([-0.9 * 0.2, 0.9 * 0.3])


def test_each_sign_steers_its_own_blocks() -> None:
    sheet = Sheet(Curve(0.2, INFINITE), Curve(0.3, INFINITE))
    direction = limited(sheet, blocks=((1, 2), (0, 1))).directions.full
    assert direction.blocks == (0, 1, 2)
    assert (direction.up_blocks, direction.down_blocks) == ((0, 1), (1, 2))
    up, down = direction.vectors(1.0), direction.vectors(-1.0)
    norms = np.array(NORMS)
    np.testing.assert_allclose(np.linalg.norm(up, axis=1) / norms, [0.3, 0.3, 0.0], rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(down, axis=1) / norms, [0.0, 0.2, 0.2], rtol=1e-5)
    assert direction.reading_block == make_direction(1, 1.0, (0, 1)).reading_block

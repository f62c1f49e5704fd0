"""The dose is the smallest that moves half of the answers, and the answers stay fluent."""

import math
from collections.abc import Generator, Mapping, Sequence

import numpy as np
import pytest

from inference.scheduling.probe import Work
from inference.steering.answers import Answers, Setting
from inference.steering.limits import TunedDose
from inference.steering.measurements import HeldOutDirections
from inference.steering.search import Finalist
from inference.steering.tuning import Tuner, tune
from tests.inference.steering.conftest import make_direction

INFINITE = float("inf")

COUNT = 12
LIMIT = math.log(3.3)
"""Nats per token: the largest loss that is fluent."""


class Curve:
    """How answers depend on the dose: `half` moves half of them, from `loops` to `end` they loop."""

    def __init__(self, half: float, loops: float, plain: float = 0.0, end: float = INFINITE) -> None:
        self._half, self._loops, self._plain, self._end = half, loops, plain, end

    def answers(self, dose: float, sign: float = 1.0) -> Answers:
        share = min(1.0, dose / (2 * self._half))
        moved = sign * np.where(np.arange(COUNT) < round(share * COUNT), 1.0, 0.4 * share)
        return Answers(
            list(range(COUNT)),
            [[1]] * COUNT,
            self._plain + moved,
            np.full(COUNT, -1.0),
            np.full(COUNT, 0.6 if self._loops <= dose < self._end else 0.0),
        )


class NoGap:
    def logprob_gap(self) -> float:
        return 0.0


def run_rounds(
    curve: Curve, first: float = 0.2, sign: float = 1.0, shift_per_dose: float = 5.0
) -> tuple[Tuner, list[float]]:
    """The tuner after its rounds, and all doses that were tried."""
    finalist = Finalist(None, first, (-shift_per_dose, shift_per_dose))
    tuner = Tuner(sign, NoGap(), finalist, curve.answers(0.0))
    tried: list[float] = []
    for _ in range(3):
        for dose in tuner.doses():
            tuner.add(dose, curve.answers(dose, sign))
            tried.append(dose)
    return tuner, tried


@pytest.mark.parametrize("half", [0.15, 0.2, 0.25, 0.4])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_dose_moves_half_of_the_answers(half: float, sign: float) -> None:
    plain = 0.0 if sign > 0 else 1.0
    tuner, _ = run_rounds(Curve(half, np.inf, plain), sign=sign)
    assert tuner.tuned().sign == sign
    assert tuner.tuned().dose == pytest.approx(half, rel=0.3)
    assert tuner.tuned().too_much == np.inf


@pytest.mark.parametrize("loops", [0.06, 0.1, 0.17, 0.25, 0.33])
def test_the_dose_is_below_the_first_one_that_loops(loops: float) -> None:
    tuner, tried = run_rounds(Curve(0.4, loops))
    assert tuner.tuned().dose in tried
    assert tuner.tuned().too_much in tried
    assert 0.4 * loops < tuner.tuned().dose < loops <= tuner.tuned().too_much


def test_without_a_fluent_dose_the_smallest_one_is_tuned_further() -> None:
    tuner, tried = run_rounds(Curve(0.4, 1e-6))
    assert tuner.tuned().dose == tuner.tuned().too_much == min(tried) < 0.05


@pytest.mark.parametrize(
    ("fluent", "best", "too_much"),
    [
        ([True, True, True], 0.2, np.inf),
        ([True, False, True], 0.1, np.inf),
        ([False, True, False], 0.2, 0.3),
        ([True, False, False], 0.1, 0.2),
        ([False, False, True], 0.1, 0.1),
    ],
)
def test_one_dose_alone_whose_answers_loop_is_chance(
    fluent: list[bool], best: float, too_much: float
) -> None:
    """0.2 moves half of the answers, if it is fluent."""
    curve = Curve(0.2, np.inf)
    tuner = Tuner(1.0, NoGap(), Finalist(None, 0.2, (-5.0, 5.0)), curve.answers(0.0))
    for dose, is_fluent in zip((0.1, 0.2, 0.3), fluent, strict=True):
        tuner.add(dose, (curve if is_fluent else Curve(0.2, 0.0)).answers(dose))
    assert (tuner.tuned().dose, tuner.tuned().too_much) == (best, too_much)


def test_a_concept_that_moves_nothing_gets_the_largest_dose() -> None:
    tuner, tried = run_rounds(Curve(100.0, np.inf))
    assert tuner.tuned().dose == max(tried) == pytest.approx(0.8)


@pytest.mark.parametrize(("shift_per_dose", "dose"), [(2.5, 0.75 / 2.5), (5.0, 0.2), (1.0, 0.4)])
def test_answers_that_cannot_move_are_steered_by_the_shift_of_the_examples(
    shift_per_dose: float, dose: float
) -> None:
    """Without steering the answers are like the examples of the sign already. The search has found 0.2."""
    tuner, _ = run_rounds(Curve(0.1, np.inf, plain=0.8), shift_per_dose=shift_per_dose)
    assert not tuner.has_room
    assert tuner.tuned().dose == pytest.approx(dose)


def test_that_dose_is_limited_by_fluency_as_well() -> None:
    tuner, _ = run_rounds(Curve(0.1, 0.1, plain=0.8), shift_per_dose=5.0)
    assert 0 < tuner.tuned().dose < 0.1
    assert tuner.tuned().too_much < np.inf


def tuned_with(learned_dose: float | None, curve: Curve) -> TunedDose:
    """The dose of strength 1 after all rounds. The search has found 0.05."""
    one = make_direction(1, 1.0, (0,))
    finalist = Finalist(HeldOutDirections(one, [one], [0]), 0.05, (-5.0, 5.0), learned_dose)
    return tuned([finalist], Sheet({0: (curve, curve)}))[1]


@pytest.mark.parametrize(
    ("loops", "dose", "too_much"),
    [
        (INFINITE, 0.4, INFINITE),
        (0.39, 0.34, 0.4),
        (0.33, 0.28, 0.34),
        (0.25, 0.22, 0.28),
    ],
)
def test_the_largest_fluent_part_of_the_learned_dose_is_used(
    loops: float, dose: float, too_much: float
) -> None:
    """Half of the answers move at 0.1."""
    found = tuned_with(0.4, Curve(0.1, loops))
    assert (found.dose, found.too_much) == pytest.approx((dose, too_much))
    assert not found.rough
    assert found.answers.repetition == 0


def test_without_a_fluent_part_the_dose_that_moves_half_of_the_answers_remains() -> None:
    found = tuned_with(0.4, Curve(0.1, 0.21))
    assert found.dose == tuned_with(None, Curve(0.1, 0.21)).dose
    assert not found.rough


@pytest.mark.parametrize("learned_dose", [None, 0.05])
def test_a_larger_dose_is_used_if_it_is_needed_to_move_half_of_the_answers(
    learned_dose: float | None,
) -> None:
    assert tuned_with(learned_dose, Curve(0.1, INFINITE)).dose == pytest.approx(0.1, rel=0.3)


def test_a_learned_dose_is_not_used_if_answers_at_smaller_strengths_are_not_fluent() -> None:
    curve = Curve(0.1, 0.05, end=0.3)
    found = tuned_with(0.4, curve)
    assert found.rough
    assert found.dose == tuned_with(None, curve).dose < 0.3


def test_strengths_below_a_half_need_not_be_fluent() -> None:
    found = tuned_with(0.4, Curve(0.1, 0.05, end=0.19))
    assert not found.rough
    assert (found.dose, found.too_much) == (0.4, INFINITE)


def test_the_learned_dose_means_nothing_if_answers_cannot_move() -> None:
    curve = Curve(0.3, INFINITE, plain=0.8)
    assert tuned_with(0.4, curve).dose == tuned_with(None, curve).dose


def test_no_dose_is_tried_twice_in_a_round() -> None:
    finalist = Finalist(None, 0.2, (-5.0, 5.0))
    tuner = Tuner(1.0, NoGap(), finalist, Curve(100.0, np.inf).answers(0.0))
    for _ in range(4):
        doses = tuner.doses()
        assert len(set(doses)) == len(doses)
        for dose in doses:
            tuner.add(dose, Curve(100.0, np.inf).answers(dose))


def answers(change: float, loops: float, logprob: float = -1.0) -> Answers:
    """Answers whose readings changed by this from 0, and a share of which loops."""
    repetitions = np.where(np.arange(COUNT) < round(loops * COUNT), 0.6, 0.0)
    return Answers(
        list(range(COUNT)), [[1]] * COUNT, np.full(COUNT, change), np.full(COUNT, logprob), repetitions
    )


def make_tuner() -> Tuner:
    return Tuner(1.0, NoGap(), Finalist(None, 0.1, (-5.0, 5.0)), answers(0.0, 0.0))


@pytest.mark.parametrize(
    ("costs", "changes", "reach"),
    [
        ([0.0], [0.2], 0.2),
        ([0.0, 0.5], [0.3, 0.4], 0.4),  # no dose is too much
        ([0.0, 2.0], [0.2, 0.4], 0.3),
        ([2.0], [0.4], 0.2),
        ([2.0, 0.0, 2.0], [0.2, 0.3, 0.4], 0.35),  # the first one was chance
        ([0.0, 2.0], [0.4, 0.2], 0.4),  # more steering does not change less
    ],
)
def test_the_reach_is_the_change_at_the_largest_fluent_dose(
    costs: list[float], changes: list[float], reach: float
) -> None:
    tuner = make_tuner()
    for number, (cost, change) in enumerate(zip(costs, changes, strict=True)):
        tuner.add(0.1 * (number + 1), answers(change, 0.0, -1.0 - cost * LIMIT))
    assert tuner.reach == pytest.approx(reach)


def test_the_usefulness_counts_moved_answers_up_to_half_of_them() -> None:
    tuner = make_tuner()
    tuner.add(0.1, answers(0.5, 0.0))
    assert tuner.usefulness == pytest.approx(0.5)


def test_the_usefulness_counts_repetition() -> None:
    tuner = make_tuner()
    tuner.add(0.1, answers(0.4, 1 / COUNT))
    assert tuner.usefulness == pytest.approx(-0.6 / COUNT)


def test_without_a_fluent_dose_there_is_no_use() -> None:
    tuner = make_tuner()
    tuner.add(0.1, answers(0.5, 1.0))
    assert tuner.usefulness == -1


def test_larger_doses_show_only_how_far_the_sign_reaches() -> None:
    tuner = make_tuner()
    tuner.add(0.1, answers(0.45, 0.0))
    assert tuner.larger_doses() == pytest.approx([0.135, 0.18])
    for dose, change in zip(tuner.larger_doses(), (0.6, 0.9), strict=True):
        tuner.add_larger(dose, answers(change, 0.0))
    assert (tuner.usefulness, tuner.reach) == pytest.approx((0.0, 0.9))
    assert tuner.tuned().dose == 0.1


def test_no_larger_dose_is_tried_if_one_is_too_much() -> None:
    tuner = make_tuner()
    tuner.add(0.1, answers(0.6, 0.0))
    tuner.add(0.2, answers(0.9, 1.0))
    assert tuner.larger_doses() == []


class Sheet:
    """Answers that depend on the blocks: by block, the curves of negative and of positive strengths."""

    def __init__(self, curves: Mapping[int, tuple[Curve, Curve]]) -> None:
        self._by_block = curves

    def ask_all(self, settings: Sequence[Setting]) -> Generator[Work, None, list[Answers]]:
        yield []
        return [
            self._by_block[one.direction.blocks[0]][one.strength > 0].answers(
                abs(one.strength), float(np.sign(one.strength))
            )
            for one in settings
        ]


def tuned(finalists: list[Finalist], sheet: Sheet) -> list[TunedDose]:
    work = tune(NoGap(), finalists, sheet)
    while True:
        try:
            next(work)
        except StopIteration as end:
            found: list[TunedDose] = end.value
            return found


@pytest.mark.parametrize(
    ("down", "up", "chosen"),
    [
        # The dose that moves half of the answers, and the one that loops, at blocks 0 and 1.
        ([(0.2, INFINITE), (0.2, 0.1)], [(0.2, 0.1), (0.2, INFINITE)], (0, 1)),
        ([(0.2, 0.1), (0.2, INFINITE)], [(0.2, INFINITE), (0.2, 0.1)], (1, 0)),
        ([(0.2, INFINITE)] * 2, [(0.2, INFINITE)] * 2, (0, 0)),
    ],
)
@pytest.mark.parametrize("plain", [0.5, 0.9])
def test_each_sign_has_its_own_blocks(
    down: list[tuple[float, float]], up: list[tuple[float, float]], chosen: tuple[int, int], plain: float
) -> None:
    """Also if answers cannot move up, because they read as 0.9 without steering."""
    curves = {block: (Curve(*down[block], plain), Curve(*up[block], plain)) for block in (0, 1)}
    finalists = [
        Finalist(HeldOutDirections(one, [one], [0]), 0.2, (-5.0, 5.0))
        for one in (make_direction(1, 1.0, (block,)) for block in (0, 1))
    ]
    doses = tuned(finalists, Sheet(curves))
    assert [one.sign for one in doses] == [-1.0, 1.0]
    assert tuple(one.directions.full.blocks[0] for one in doses) == chosen

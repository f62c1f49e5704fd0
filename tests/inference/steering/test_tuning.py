"""The dose is the smallest that moves half of the answers, and the answers stay fluent."""

import numpy as np
import pytest

from inference.steering.answers import Answers
from inference.steering.search import Finalist
from inference.steering.tuning import CAP_STRENGTHS, Tuner

COUNT = 12


class Curve:
    """How answers depend on the dose: `half` moves half of them, from `loops` on they repeat themselves."""

    def __init__(self, half: float, loops: float, plain: float = 0.0) -> None:
        self._half, self._loops, self._plain = half, loops, plain

    def answers(self, dose: float, sign: float = 1.0) -> Answers:
        share = min(1.0, dose / (2 * self._half))
        moved = sign * np.where(np.arange(COUNT) < round(share * COUNT), 1.0, 0.4 * share)
        return Answers(
            [[1]] * COUNT,
            self._plain + moved,
            np.full(COUNT, -1.0),
            np.full(COUNT, 0.6 if dose >= self._loops else 0.0),
        )


class NoGap:
    def logprob_gap(self) -> float:
        return 0.0


def tune(
    curve: Curve, first: float = 0.2, sign: float = 1.0, shift_per_dose: float = 5.0
) -> tuple[Tuner, list[float]]:
    """The tuner after its rounds, and all doses that were tried."""
    finalist = Finalist(None, first, (-shift_per_dose, shift_per_dose))
    tuner = Tuner(sign, NoGap(), finalist, curve.answers(0.0))
    tried: list[float] = []
    for number in range(7):
        if number >= 3 and tuner.has_fluent_dose:
            break
        for dose in tuner.doses():
            tuner.add(dose, curve.answers(dose, sign))
            tried.append(dose)
    return tuner, tried


@pytest.mark.parametrize("half", [0.15, 0.2, 0.25, 0.4])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_dose_moves_half_of_the_answers(half: float, sign: float) -> None:
    plain = 0.0 if sign > 0 else 1.0
    tuner, _ = tune(Curve(half, np.inf, plain), sign=sign)
    assert tuner.best().moved == pytest.approx(0.5, abs=0.11)
    assert tuner.best().dose == pytest.approx(half, rel=0.3)


@pytest.mark.parametrize("loops", [0.005, 0.02, 0.05, 0.1, 0.17, 0.25, 0.33])
def test_the_dose_is_below_the_first_one_that_loops(loops: float) -> None:
    tuner, tried = tune(Curve(0.4, loops))
    best = tuner.best()
    assert best.dose in tried
    assert best.answers_are_fluent
    assert 0.4 * loops < best.dose < loops


def test_without_a_fluent_dose_the_smallest_one_is_used() -> None:
    tuner, tried = tune(Curve(0.4, 1e-6))
    assert not tuner.has_fluent_dose
    assert tuner.best().dose == min(tried) < 0.01


@pytest.mark.parametrize(("loops", "cap"), [(1.1, 1.0), (1.3, 1.25), (1.7, 1.5), (3.0, 2.0)])
def test_the_largest_strength_is_the_last_one_before_answers_loop(loops: float, cap: float) -> None:
    tuner, dose = tuned_at_once(fluent_up_to=10.0)
    curve = Curve(dose, loops * dose)
    assert tuner.cap({strength: curve.answers(strength * dose) for strength in CAP_STRENGTHS}) == cap


def test_a_dose_that_looped_before_limits_the_largest_strength() -> None:
    """Even if the answers at a larger strength happen to be fluent."""
    tuner, dose = tuned_at_once(fluent_up_to=1.4)
    fluent = Curve(dose, np.inf)
    assert tuner.cap({strength: fluent.answers(strength * dose) for strength in CAP_STRENGTHS}) == 1.25


def tuned_at_once(fluent_up_to: float) -> tuple[Tuner, float]:
    """A tuner that has tried a good dose, and 1.4 times this dose. Also the good dose."""
    dose = 0.2
    curve = Curve(dose, fluent_up_to * dose)
    tuner = Tuner(1.0, NoGap(), Finalist(None, dose, (-5.0, 5.0)), curve.answers(0.0))
    for tried in (dose, 1.4 * dose):
        tuner.add(tried, curve.answers(tried))
    return tuner, dose


def test_a_concept_that_moves_nothing_gets_the_largest_dose() -> None:
    tuner, tried = tune(Curve(100.0, np.inf))
    assert tuner.best().dose == max(tried) == pytest.approx(0.8)


def test_answers_that_cannot_move_are_steered_by_the_shift_of_the_examples() -> None:
    """Without steering the answers are like the examples of the sign already."""
    tuner, _ = tune(Curve(0.1, np.inf, plain=0.8), shift_per_dose=5.0)
    assert not tuner.has_room
    assert tuner.best().dose == pytest.approx(0.75 / 5.0)


def test_that_dose_is_limited_by_fluency_as_well() -> None:
    tuner, _ = tune(Curve(0.1, 0.1, plain=0.8), shift_per_dose=5.0)
    assert 0 < tuner.best().dose < 0.1
    assert tuner.best().answers_are_fluent


def test_no_dose_is_tried_twice_in_a_round() -> None:
    finalist = Finalist(None, 0.2, (-5.0, 5.0))
    tuner = Tuner(1.0, NoGap(), finalist, Curve(100.0, np.inf).answers(0.0))
    for _ in range(4):
        doses = tuner.doses()
        assert len(set(doses)) == len(doses)
        for dose in doses:
            tuner.add(dose, Curve(100.0, np.inf).answers(dose))

"""Lowers doses until the answers are fluent, and finds the largest strengths up to which they stay so."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from inference.scheduling.probe import Work
from inference.steering.answers import Answers, AnswerSheet, Setting, is_fluent
from inference.steering.directions import Direction
from inference.steering.measurements import HeldOutDirections

_CAP_STRENGTHS = (1.125, 1.25, 1.5, 1.75, 2.0)
_CAP_PART = 0.7
"""Of the limits of fluency that strengths above 1 may use. The largest strength that passes has often passed
by chance, and questions that training does not ask may lead to more repetition."""
_LOWER = 0.6
_MAX_LOWERINGS = 8
"""Then a dose is so small that it has no effect."""


@dataclass(frozen=True)
class TunedDose:
    """What strength 1 or -1 should add."""

    sign: float
    dose: float
    answers: Answers
    too_much: float
    """The smallest dose that is known to be too much. Infinite if there is none."""


def limit(
    directions: HeldOutDirections,
    tuned: Sequence[TunedDose],
    plain: Answers,
    logprob_gap: float,
    sheet: AnswerSheet,
) -> Generator[Work, None, tuple[HeldOutDirections, dict[float, Answers]]]:
    """The directions with the doses and the largest strengths, and the answers at strengths -1, 0 and 1.

    `directions`: their strength 1 has the dose 1. `tuned`: for negative and for positive strengths. `plain`:
    the answers without steering. `logprob_gap`: see Examples.
    """
    signs = [_Sign(one, plain, one.sign * logprob_gap) for one in tuned]
    for sign in signs:
        yield from _lower(directions.full, sign, sheet)
    down, up = signs
    dosed = directions.rescaled(up.dose, down.dose)
    yield from _find_caps(dosed.full, signs, sheet)
    return dosed.limited(down.cap, up.cap), {-1.0: down.answers, 0.0: plain, 1.0: up.answers}


class _Sign:
    """The dose and the largest strength of one sign."""

    def __init__(self, tuned: TunedDose, plain: Answers, own_cost: float) -> None:
        self.sign = tuned.sign
        self.dose = tuned.dose
        self.answers = tuned.answers
        """At the dose."""
        self.cap = 1.0
        self._too_much = tuned.too_much
        self._plain = plain
        self._own_cost = own_cost

    def lower(self) -> None:
        self._too_much = min(self._too_much, self.dose)
        self.dose *= _LOWER

    def is_fluent(self, answers: Answers, part: float = 1.0) -> bool:
        return is_fluent(self._plain, answers, self._own_cost, part)

    def may_allow(self, strength: float) -> bool:
        """Whether the dose at a strength is not yet known to be too much."""
        return strength * self.dose < self._too_much


def _lower(direction: Direction, sign: _Sign, sheet: AnswerSheet) -> Generator[Work, None, None]:
    for _ in range(_MAX_LOWERINGS):
        if sign.is_fluent(sign.answers):
            return
        sign.lower()
        [sign.answers] = yield from sheet.ask_all([Setting(direction, sign.sign * sign.dose)])


def _find_caps(
    direction: Direction, signs: Sequence[_Sign], sheet: AnswerSheet
) -> Generator[Work, None, None]:
    """Sets `cap` to the largest of _CAP_STRENGTHS up to which all answers keep to _CAP_PART of the limits.

    It stays 1 if there is none.
    """
    growing = [sign for sign in signs if sign.is_fluent(sign.answers)]
    for strength in _CAP_STRENGTHS:
        growing = [sign for sign in growing if sign.may_allow(strength)]
        answers = yield from sheet.ask_all([Setting(direction, sign.sign * strength) for sign in growing])
        answered = zip(growing, answers, strict=True)
        growing = [sign for sign, answer in answered if sign.is_fluent(answer, _CAP_PART)]
        for sign in growing:
            sign.cap = strength

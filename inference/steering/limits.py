"""Lowers doses until the answers are fluent, and finds the largest strengths up to which they stay so."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from inference.scheduling.probe import Work
from inference.steering.answers import (
    MIN_MOVED,
    Answers,
    AnswerSheet,
    Setting,
    has_room,
    is_fluent,
    moved,
)
from inference.steering.directions import Direction
from inference.steering.measurements import HeldOutDirections

_CAP_STRENGTHS = (1.125, 1.25, 1.5, 1.75, 2.0)
STRENGTH_PART = 0.85
_CAP_PART = 0.7
"""Of the limits of fluency that strength 1, and that larger strengths may use. The largest dose that passes
has often passed by chance, and questions that training does not ask may lead to more repetition."""
_LOWER = 0.6
_LOWER_A_LITTLE = 0.9
"""If answers are fluent, but use more than their part."""
_MAX_LOWERINGS = 8
"""Then a dose is so small that it has no effect."""


@dataclass(frozen=True)
class TunedDose:
    """What strength 1 or -1 should add."""

    sign: float
    directions: HeldOutDirections
    """Their strength 1 has the dose 1."""
    dose: float
    plain: Answers
    """Without steering, read along the direction."""
    answers: Answers
    """At the dose, read along the direction."""
    too_much: float
    """The smallest dose that is known to be too much. Infinite if there is none."""
    rough: bool = False
    """Whether a larger dose is fluent, but could not be used because half of it or more is not."""


@dataclass(frozen=True)
class Limited:
    """Directions with their doses and largest strengths."""

    directions: HeldOutDirections
    answers: dict[float, Answers]
    """At the strengths -1, 0 and 1."""
    plain_down: Answers
    """Those at 0, read as those at -1 are. All others are read as those at 1 are."""

    @property
    def unmoved(self) -> tuple[float, ...]:
        """The signs whose strength moves too few answers, though they could be moved."""
        plain = {-1.0: self.plain_down, 1.0: self.answers[0.0]}
        return tuple(
            sign
            for sign in plain
            if has_room(plain[sign], sign) and moved(plain[sign], self.answers[sign], sign).mean() < MIN_MOVED
        )


def limit(
    down: TunedDose, up: TunedDose, logprob_gap: float, sheet: AnswerSheet
) -> Generator[Work, None, Limited]:
    """`logprob_gap`: see Examples."""
    signs = lower, upper = [_Sign(tuned, tuned.sign * logprob_gap) for tuned in (down, up)]
    for sign in signs:
        yield from _lower(sign, sheet)
    dosed = up.directions.with_down(down.directions).rescaled(upper.dose, lower.dose)
    yield from _find_caps(dosed.full, signs, sheet)
    answers = {-1.0: lower.answers, 0.0: up.plain, 1.0: upper.answers}
    return Limited(dosed.limited(lower.cap, upper.cap), answers, down.plain)


class _Sign:
    """The dose and the largest strength of one sign."""

    def __init__(self, tuned: TunedDose, own_cost: float) -> None:
        self.sign = tuned.sign
        self.direction = tuned.directions.full
        self.dose = tuned.dose
        self.plain = tuned.plain
        self.answers = tuned.answers
        """At the dose."""
        self.cap = 1.0
        self._too_much = tuned.too_much
        self._own_cost = own_cost

    def lower(self) -> None:
        if self.is_fluent(self.answers):
            self.dose *= _LOWER_A_LITTLE
            return
        self._too_much = min(self._too_much, self.dose)
        self.dose *= _LOWER

    def is_fluent(self, answers: Answers, part: float = 1.0) -> bool:
        return is_fluent(self.plain, answers, self._own_cost, part)

    def may_allow(self, strength: float) -> bool:
        """Whether the dose at a strength is not yet known to be too much."""
        return strength * self.dose < self._too_much


def _lower(sign: _Sign, sheet: AnswerSheet) -> Generator[Work, None, None]:
    for _ in range(_MAX_LOWERINGS):
        if sign.is_fluent(sign.answers, STRENGTH_PART):
            return
        sign.lower()
        [sign.answers] = yield from sheet.ask_all([Setting(sign.direction, sign.sign * sign.dose)])


def _find_caps(
    direction: Direction, signs: Sequence[_Sign], sheet: AnswerSheet
) -> Generator[Work, None, None]:
    """Sets `cap` to the largest of _CAP_STRENGTHS up to which all answers keep to _CAP_PART of the limits.

    It stays 1 if there is none.
    """
    growing = [sign for sign in signs if sign.is_fluent(sign.answers, STRENGTH_PART)]
    for strength in _CAP_STRENGTHS:
        growing = [sign for sign in growing if sign.may_allow(strength)]
        answers = yield from sheet.ask_all([Setting(direction, sign.sign * strength) for sign in growing])
        answered = zip(growing, answers, strict=True)
        growing = [sign for sign, answer in answered if sign.is_fluent(answer, _CAP_PART)]
        for sign in growing:
            sign.cap = strength

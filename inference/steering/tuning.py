"""Finds what strengths 1 and -1 add, by the answers that the model generates.

Strength 1 moves about half of the answers, if they stay fluent, or has the larger dose for which the vectors
were refined, if smaller strengths are fluent as well. docs/steering.md says why.
"""

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from inference.scheduling.probe import Work
from inference.steering.answers import (
    MOVED,
    Answers,
    AnswerSheet,
    Setting,
    changes,
    fluency_cost,
    has_room,
    moved,
)
from inference.steering.limits import STRENGTH_PART, TunedDose
from inference.steering.measurements import Examples
from inference.steering.search import Finalist

_WANTED_SHARE = 0.5
"""Of the answers that strength 1 should move."""
_WANTED_SHIFT = 0.75
"""Nats per token: the wanted shift of the log odds, if the answers are already like the sign's examples."""
_ABOUT = 0.11
"""A share is about the wanted one if it differs by less than this."""
_FIRST_FACTORS = (0.75, 1.25)
"""Of the dose that the search has found."""
_NO_ROOM = 2.0
"""The largest factor of the dose that the search has found, if the answers cannot move. The least is 1."""
_LOWER = (0.45, 0.7)
_HIGHER = (1.35, 1.8)
_BETWEEN = (0.33, 0.67)
_SAME_DOSE = 0.02
_ROUNDS_OF_ALL = 2
_ROUNDS_OF_BEST = 2
"""Only the best finalist goes on to these rounds."""
_MAX_FACTOR = 4.0
_LEARNED = (0.55, 0.7, 0.85, 1.0)
"""Which parts of the learned dose to try."""
_FLUENT_FROM = 0.5
"""Answers at this strength and more must be fluent if strength 1 has such a part."""


@dataclass(frozen=True)
class Trial:
    """Answers at one dose, compared with those without steering."""

    dose: float
    answers: Answers
    moved: float
    """Share of the answers that moved towards the sign."""
    change: float
    """By how much their mean reading changed towards the sign."""
    cost: float
    """See fluency_cost."""


class Tuner:
    """Tunes the strengths of one sign at the blocks of one finalist."""

    def __init__(self, sign: float, examples: Examples, finalist: Finalist, plain: Answers) -> None:
        """`plain`: answers without steering, read along the finalist's direction."""
        self.sign = sign
        self.directions = finalist.directions
        self._plain = plain
        self._own_cost = sign * examples.logprob_gap()
        self.has_room = has_room(plain, sign)
        """Whether the answers without steering can move far enough at all."""
        self._limit = finalist.dose * _MAX_FACTOR
        slope = sign * finalist.shift_per_dose[sign > 0]
        self._shift_dose = _WANTED_SHIFT / slope if slope > 0 else self._limit
        self._trials: list[Trial] = []
        self._larger: list[Trial] = []
        """Trials that only show how far the sign reaches."""
        self._learned: list[Trial] = []
        """Trials of `learned_doses`."""
        self._first = finalist.dose
        self._learned_dose = finalist.learned_dose or 0.0

    @property
    def usefulness(self) -> float:
        """How many answers a fluent dose moves, up to the wanted share, and how little they repeat."""
        fluent, _ = self._split()
        return max((min(t.moved, _WANTED_SHARE) - t.answers.repetition for t in fluent), default=-1.0)

    @property
    def reach(self) -> float:
        """By how much the largest fluent dose changes the mean reading, interpolated between the trials.

        Larger doses cost more and change more; where the trials show the opposite, that is chance.
        """
        trials = [*self._trials, *self._larger]
        costs = [0.0, *(trial.cost for trial in trials)]
        either = np.minimum(costs, [*costs[1:], math.inf])
        changes = np.maximum.accumulate([0.0, *(trial.change for trial in trials)])
        return float(np.interp(1.0, np.maximum.accumulate(either), changes))

    def doses(self) -> list[float]:
        """What to try next: near the best dose so far, or where it must be. Nothing if it is known."""
        if not self._trials:
            first = [factor * self._first for factor in _FIRST_FACTORS]
            unmoved = min(max(self._shift_dose, self._first), _NO_ROOM * self._first)
            return self._limited(first if self.has_room else [unmoved])
        fluent, too_much = self._split()
        if not fluent:
            return self._limited(factor * too_much for factor in _LOWER)
        if not self.has_room or abs(self._closest(fluent).moved - _WANTED_SHARE) < _ABOUT:
            return []
        largest, wanted = fluent[-1].dose, _crossing(fluent)
        if wanted <= largest:
            is_known = any(math.isclose(trial.dose, wanted, rel_tol=_SAME_DOSE) for trial in fluent)
            return [] if is_known else [wanted]
        if too_much < math.inf:
            return self._limited(largest + part * (too_much - largest) for part in _BETWEEN)
        return self._limited(factor * largest for factor in _HIGHER)

    def larger_doses(self) -> list[float]:
        """What to try to see how far the sign reaches. Nothing if a dose is known to be too much."""
        fluent, too_much = self._split()
        return [] if too_much < math.inf else self._limited(factor * fluent[-1].dose for factor in _HIGHER)

    def learned_doses(self) -> list[float]:
        """The learned dose and parts of it, if they are larger than the best dose so far."""
        doses = [part * self._learned_dose for part in _LEARNED]
        return [dose for dose in doses if dose > self._best().dose] if self.has_room else []

    def add(self, dose: float, answers: Answers) -> None:
        """Takes the answers at one of `doses`."""
        self._trials.append(self._trial(dose, answers))
        self._trials.sort(key=lambda trial: trial.dose)

    def add_learned(self, dose: float, answers: Answers) -> None:
        """Takes the answers at one of `learned_doses`."""
        self._learned.append(self._trial(dose, answers))

    def add_larger(self, dose: float, answers: Answers) -> None:
        """Takes the answers at one of `larger_doses`, in the same order."""
        self._larger.append(self._trial(dose, answers))

    def _trial(self, dose: float, answers: Answers) -> Trial:
        share = float(moved(self._plain, answers, self.sign).mean())
        change = float(changes(self._plain, answers, self.sign).mean())
        cost = fluency_cost(self._plain, answers, self._own_cost)
        return Trial(dose, answers, share, change, cost)

    def tuned(self) -> TunedDose:
        """The fluent dose that moves closest to the wanted share of answers.

        If there is none, the smallest dose that was tried. But the largest of `learned_doses` that is fluent
        enough, if there is one that can be used.
        """
        best, too_much = self._best(), self._split()[1]
        learned = [trial for trial in self._learned if trial.cost <= STRENGTH_PART]
        failed = [trial.dose for trial in (*self._trials, *self._learned) if trial.cost > 1]
        smooth = [
            trial
            for trial in learned
            if not any(_FLUENT_FROM * trial.dose <= dose < trial.dose for dose in failed)
        ]
        if smooth:
            best = max(smooth, key=lambda trial: trial.dose)
            too_much = min((dose for dose in failed if dose > best.dose), default=math.inf)
        rough = bool(learned) and not smooth
        return TunedDose(self.sign, self.directions, best.dose, self._plain, best.answers, too_much, rough)

    def _best(self) -> Trial:
        fluent, _ = self._split()
        return self._closest(fluent) if fluent else self._trials[0]

    def _closest(self, fluent: list[Trial]) -> Trial:
        def distance(trial: Trial) -> tuple[float, float]:
            return abs(trial.moved - _WANTED_SHARE), abs(trial.change - MOVED)

        return min(fluent, key=distance)

    def _split(self) -> tuple[list[Trial], float]:
        """The trials up to the largest fluent dose, and the smallest dose that is too much.

        A dose whose answers are not fluent is not too much if the next larger one is fluent: then the failure
        was chance.
        """
        is_fluent = [trial.cost <= 1 for trial in self._trials]
        either = [one or following for one, following in zip(is_fluent, [*is_fluent[1:], False], strict=True)]
        count = len(list(itertools.takewhile(bool, either)))
        fluent = [trial for trial in self._trials[:count] if trial.cost <= 1]
        rest = self._trials[count:]
        return fluent, rest[0].dose if rest else math.inf

    def _limited(self, doses: Iterable[float]) -> list[float]:
        return sorted({min(dose, self._limit) for dose in doses})


def tune(
    examples: Examples, finalists: list[Finalist], sheet: AnswerSheet
) -> Generator[Work, None, list[TunedDose]]:
    """For negative and for positive strengths the best finalist and its dose."""
    plain = yield from sheet.ask_all([Setting(finalist.directions.full, 0.0) for finalist in finalists])
    by_sign = [
        [Tuner(sign, examples, *pair) for pair in zip(finalists, plain, strict=True)] for sign in (-1.0, 1.0)
    ]
    tuners = [*itertools.chain.from_iterable(by_sign)]
    for _ in range(_ROUNDS_OF_ALL):
        yield from _try_doses(tuners, sheet, Tuner.doses, Tuner.add)
    if len(finalists) > 1:
        yield from _try_doses(tuners, sheet, Tuner.larger_doses, Tuner.add_larger)
    best = [_best(rivals) for rivals in by_sign]
    for _ in range(_ROUNDS_OF_BEST):
        yield from _try_doses(best, sheet, Tuner.doses, Tuner.add)
    yield from _try_doses(best, sheet, Tuner.learned_doses, Tuner.add_learned)
    return [tuner.tuned() for tuner in best]


def _best(rivals: list[Tuner]) -> Tuner:
    """The one at whose blocks the sign can be steered best: at strength 1, and as far as it reaches.

    If answers cannot move, strength 1 shows nothing, and the reach decides alone.
    """
    if all(tuner.has_room for tuner in rivals):
        return max(rivals, key=lambda tuner: tuner.usefulness + tuner.reach)
    return max(rivals, key=lambda tuner: tuner.reach)


def _try_doses(
    tuners: list[Tuner],
    sheet: AnswerSheet,
    doses_of: Callable[[Tuner], list[float]],
    add: Callable[[Tuner, float, Answers], None],
) -> Generator[Work, None, None]:
    """One round of all tuners."""
    tried = [(tuner, dose) for tuner in tuners for dose in doses_of(tuner)]
    answers = yield from sheet.ask_all(
        [Setting(tuner.directions.full, tuner.sign * dose) for tuner, dose in tried]
    )
    for (tuner, dose), answer in zip(tried, answers, strict=True):
        add(tuner, dose, answer)


def _crossing(trials: Sequence[Trial]) -> float:
    """The dose at which the share of moved answers reaches _WANTED_SHARE.

    Interpolates linearly in a share that never falls with the dose. Infinite if it is never reached.
    """
    doses = [0.0, *(trial.dose for trial in trials)]
    shares = np.maximum.accumulate([0.0, *(trial.moved for trial in trials)])
    for number in range(1, len(doses)):
        if shares[number] >= _WANTED_SHARE:
            part = (_WANTED_SHARE - shares[number - 1]) / (shares[number] - shares[number - 1])
            return float(doses[number - 1] + part * (doses[number] - doses[number - 1]))
    return float("inf")

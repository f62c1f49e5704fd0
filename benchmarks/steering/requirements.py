"""What the evaluation requires of steering, and what is not met."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from benchmarks.steering.compare import OURS, PROMPT, Comparison, Trial
from benchmarks.steering.measure import STRENGTHS, Evaluated
from inference.steering.report import spearman

MIN_SHIFT = 0.25
MIN_SPEARMAN = 0.95
MIN_SPECIFICITY = 5.0
MIN_KEPT = 0.6
NUM_RESAMPLES = 200


def faults(concepts: list[Evaluated]) -> list[str]:
    """The requirements that are not met."""
    return [f"{concept.name}: {fault}" for concept in concepts for fault in _faults(concept)]


@dataclass(frozen=True)
class Excess:
    """One of our strengths whose answers cost more than is fluent."""

    strength: float
    cost: float
    error: float
    """Standard error of the cost."""

    @property
    def is_certain(self) -> bool:
        """Whether the cost is too large by more than its error."""
        return self.cost - self.error > 1.0


def excesses(comparison: Comparison) -> list[Excess]:
    """Our strengths above the limit of fluency. Their errors are made by a bootstrap, as in `advantage`."""
    found = [trial for trial in comparison.of(OURS) if not comparison.is_fluent(trial)]
    if not found:
        return []
    random = np.random.default_rng(0)
    costs = np.array([comparison.resampled(random).costs(OURS) for _ in range(NUM_RESAMPLES)])
    errors = dict(zip([t.coefficient for t in comparison.of(OURS)], costs.std(0, ddof=1), strict=True))
    return [
        Excess(comparison.sign * trial.coefficient, comparison.cost(trial), float(errors[trial.coefficient]))
        for trial in found
    ]


def rivals(comparison: Comparison) -> list[str]:
    """The other ways of steering."""
    return [way for way in comparison.ways if way not in (OURS, PROMPT)]


def our_best(comparison: Comparison) -> Trial:
    """The fluent trial of ours with the largest gain. If none is fluent, the one that costs least."""
    return comparison.best(OURS) or min(comparison.of(OURS), key=comparison.cost)


def advantage(comparison: Comparison, way: str | None = None) -> tuple[float, float]:
    """By how much our best gain exceeds that of another way at the same cost. Its standard error.

    `way`: None compares with the best of all other ways. The costs are estimates, too, and the best trial of
    many is chosen by chance. So the error is that of the whole procedure: its standard deviation if the
    prompts are drawn again, with replacement (bootstrap).
    """
    ways = rivals(comparison) if way is None else [way]
    random = np.random.default_rng(0)
    again = [_advantage(comparison.resampled(random), ways) for _ in range(NUM_RESAMPLES)]
    return _advantage(comparison, ways), float(np.std(again, ddof=1))


def _advantage(comparison: Comparison, ways: list[str]) -> float:
    ours = our_best(comparison)
    cost = comparison.cost(ours)
    return ours.gain - max(float(comparison.gains_at(way, cost).mean()) for way in ways)


def rank(concept: Evaluated) -> float:
    """Rank correlation of strength and shift."""
    return spearman([concept.shifts[strength] for strength in STRENGTHS if abs(strength) <= 1])


def specificity(concept: Evaluated) -> float:
    """The mean shift at strength 1 and -1, relative to that of random directions."""
    return (concept.shifts[1.0] - concept.shifts[-1.0]) / 2 / concept.random_shift


def _faults(concept: Evaluated) -> Iterable[str]:
    if not concept.report.works:
        yield f"the report: {concept.report.summary}"
    if not (concept.shifts[1.0] >= MIN_SHIFT and concept.shifts[-1.0] <= -MIN_SHIFT):
        yield "the shift is too small"
    if not rank(concept) >= MIN_SPEARMAN:
        yield "the effect does not always grow with the strength"
    if not specificity(concept) >= MIN_SPECIFICITY:
        yield "random directions have a similar effect"
    for other, kept in concept.kept.items():
        if not kept >= MIN_KEPT:
            yield f"only {kept:.0%} of its effect remains together with {other}"
    for comparison in concept.comparisons:
        difference, error = advantage(comparison)
        if difference < -error:
            yield f"another way is stronger for {comparison.goal}, by {-difference:.3f} ± {error:.3f}"
        for excess in excesses(comparison):
            if excess.is_certain:
                yield (
                    f"answers at strength {excess.strength:g} are not fluent: their cost is "
                    f"{excess.cost:.2f} ± {excess.error:.2f}"
                )

"""Judges a concept by its measurements, and says the result in words. Knows no tensors and no model."""

import numpy as np

from inference.interface.protocol import ConceptReport, Effect
from inference.scheduling.probe import Array64

MIN_SHIFT = 0.5
"""Nats per token: at least this at strength 1, and at most its negative at -1."""
MIN_SPEARMAN = 0.95
MIN_SPECIFICITY = 5.0
MAX_PERPLEXITY_RATIO = 1.5
MIN_AGREEMENT = 0.15
MIN_EXAMPLES = 8
"""Fewer examples do not show whether a concept works on other texts."""


def agreement(differences: Array64) -> float | None:
    """Mean cosine between two different rows of [N, hidden_size]. None for a single row."""
    count = len(differences)
    if count < 2:
        return None
    lengths = np.linalg.norm(differences, axis=1, keepdims=True)
    unit = differences / np.where(lengths > 0, lengths, 1.0)
    total = np.square(unit.sum(0)).sum() - np.square(unit).sum()
    return float(total / (count * (count - 1)))


def spearman(values: list[float]) -> float:
    """Rank correlation of the values with their order in the list. If two values are equal, at most 0."""
    ranks = np.argsort(np.argsort(values)) if len(set(values)) == len(values) else np.zeros(len(values))
    count = len(values)
    return float(1 - 6 * np.square(ranks - np.arange(count)).sum() / (count * (count**2 - 1)))


def judge(
    *,
    num_examples: int,
    num_held_out: int,
    agreement: float | None,
    effects: list[Effect],
    specificity: float | None,
    block: int,
    dose: float,
) -> ConceptReport:
    """Judges the measurements. `effects`: by strength, from -1 to 1; empty if no pair could be held out."""
    rank_correlation = spearman([effect.shift for effect in effects]) if effects else None
    faults = _faults(effects, rank_correlation, specificity)
    has_enough_examples = num_examples >= MIN_EXAMPLES
    return ConceptReport(
        works=not faults if has_enough_examples else None,
        summary=_summary(effects, faults, num_examples),
        warnings=_warnings(agreement),
        num_examples=num_examples,
        num_held_out=num_held_out,
        agreement=agreement,
        effects=effects,
        spearman=rank_correlation,
        specificity=specificity,
        block=block,
        dose=dose,
    )


def _faults(effects: list[Effect], rank_correlation: float | None, specificity: float | None) -> list[str]:
    """The requirements that the concept does not meet, most important first."""
    if not effects:
        return []
    down, up = effects[0], effects[-1]
    faults = []
    if not (up.shift >= MIN_SHIFT and down.shift <= -MIN_SHIFT):
        faults.append(
            f"strength 1 does not raise, or strength -1 does not lower, the log odds by at least {MIN_SHIFT} "
            "nats per token"
        )
    if rank_correlation is not None and not rank_correlation >= MIN_SPEARMAN:
        faults.append("the effect does not always grow with the strength")
    if specificity is not None and not specificity >= MIN_SPECIFICITY:
        faults.append(
            f"its effect is {specificity:.1f} times the effect of random directions, "
            f"but must be at least {MIN_SPECIFICITY:.0f} times"
        )
    if not (up.perplexity_ratio <= MAX_PERPLEXITY_RATIO and down.perplexity_ratio <= MAX_PERPLEXITY_RATIO):
        faults.append(f"it raises the perplexity of neutral texts by over {MAX_PERPLEXITY_RATIO - 1:.0%}")
    return faults


def _warnings(agreement: float | None) -> list[str]:
    if agreement is None or agreement >= MIN_AGREEMENT:
        return []
    return [
        "steering by this concept may be unreliable, because the example pairs do not differ in the same way "
        f"(mean cosine {agreement:.2f}, below {MIN_AGREEMENT}): check that the two texts of each pair differ "
        "only in the concept, and that positive and negative are not swapped"
    ]


def _summary(effects: list[Effect], faults: list[str], num_examples: int) -> str:
    if not effects:
        return "The concept was not measured: with a single example, none can be held out for measuring."
    measured = _measured(effects)
    if num_examples < MIN_EXAMPLES:
        return (
            f"There are too few examples to tell whether the concept works: {num_examples}, "
            f"but at least {MIN_EXAMPLES} are needed. {measured}"
        )
    if faults:
        return f"The concept does not work: {'; '.join(faults)}. {measured}"
    return f"The concept works. {measured}"


def _measured(effects: list[Effect]) -> str:
    down, up = effects[0], effects[-1]
    ratio = max(up.perplexity_ratio, down.perplexity_ratio)
    return (
        f"Measured on held-out examples: strength 1 changes the log odds of positive over negative texts by "
        f"{up.shift:+.2f} nats per token, and strength -1 by {down.shift:+.2f}. The perplexity of neutral "
        f"texts is at most {ratio:.2f} times their perplexity without steering."
    )

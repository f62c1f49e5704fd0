"""From what was measured of a concept to a judgement in words. Knows no tensors and no model."""

import numpy as np

from inference.interface.protocol import ConceptReport, Effect
from inference.scheduling.probe import Array64

MIN_SHIFT = 0.5
"""Nats per token, at strength 1 and at -1."""
MIN_SPEARMAN = 0.95
MIN_SPECIFICITY = 5.0
MAX_PERPLEXITY_RATIO = 1.5
MIN_AGREEMENT = 0.15
MIN_EXAMPLES = 8
"""Fewer say nothing about a concept that holds beyond them."""


def agreement(differences: Array64) -> float | None:
    """Mean cosine between two rows of [N, hidden_size]; None for a single row."""
    count = len(differences)
    if count < 2:
        return None
    lengths = np.linalg.norm(differences, axis=1, keepdims=True)
    unit = differences / np.where(lengths > 0, lengths, 1.0)
    total = np.square(unit.sum(0)).sum() - np.square(unit).sum()
    return float(total / (count * (count - 1)))


def spearman(values: list[float]) -> float:
    """Rank correlation of values with their own order; ties count as disorder."""
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
    """`effects` are ordered by strength, from -1 to 1; empty if nothing could be held out."""
    rank_correlation = spearman([effect.shift for effect in effects]) if effects else None
    faults = _faults(effects, rank_correlation, specificity)
    tells = num_examples >= MIN_EXAMPLES
    return ConceptReport(
        works=not faults if tells else None,
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
    """What keeps the concept from passing, worst first."""
    if not effects:
        return []
    down, up = effects[0], effects[-1]
    faults = []
    if not (up.shift >= MIN_SHIFT and down.shift <= -MIN_SHIFT):
        faults.append(f"it should move the odds by at least {MIN_SHIFT} nats per token on both sides")
    if rank_correlation is not None and not rank_correlation >= MIN_SPEARMAN:
        faults.append("a greater strength does not always have a greater effect")
    if specificity is not None and not specificity >= MIN_SPECIFICITY:
        faults.append(
            f"its effect is {specificity:.1f} times that of random ones, not {MIN_SPECIFICITY:.0f} times"
        )
    if not (up.perplexity_ratio <= MAX_PERPLEXITY_RATIO and down.perplexity_ratio <= MAX_PERPLEXITY_RATIO):
        faults.append(f"it raises the perplexity of neutral text by more than {MAX_PERPLEXITY_RATIO - 1:.0%}")
    return faults


def _warnings(agreement: float | None) -> list[str]:
    if agreement is None or agreement >= MIN_AGREEMENT:
        return []
    return [
        f"the examples hardly agree on what tells positive from negative (mean cosine {agreement:.2f}, "
        f"under {MIN_AGREEMENT}): check that each pair differs in the concept, and in the same direction"
    ]


def _summary(effects: list[Effect], faults: list[str], num_examples: int) -> str:
    if not effects:
        return "Unmeasured: a single example leaves nothing to measure it on."
    measured = _measured(effects)
    if num_examples < MIN_EXAMPLES:
        return f"Too few examples to tell: {num_examples}, of at least {MIN_EXAMPLES}. {measured}"
    if faults:
        return f"It does not work as it should: {'; '.join(faults)}. {measured}"
    return f"It works. {measured}"


def _measured(effects: list[Effect]) -> str:
    down, up = effects[0], effects[-1]
    ratio = max(up.perplexity_ratio, down.perplexity_ratio)
    return (
        f"Strength 1 moves the odds of held-out positive over negative texts by {up.shift:+.2f} nats per "
        f"token, -1 by {down.shift:+.2f}; the perplexity of neutral text rises to {ratio:.2f} times at most."
    )

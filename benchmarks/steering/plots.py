"""Draws the evaluation as one picture."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "tiller"  # the same figures give the same file

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from benchmarks.steering.measure import STRENGTHS, Concept  # noqa: E402


def draw(concepts: list[Concept], file: Path) -> None:
    figure, ((effect, fluency), (specificity, divergence)) = plt.subplots(2, 2, figsize=(11, 8))
    for concept in concepts:
        effect.plot(STRENGTHS, [concept.shifts[s] for s in STRENGTHS], marker="o", ms=3, label=concept.name)
        fluency.plot(STRENGTHS, [concept.ratios[s] for s in STRENGTHS], marker="o", ms=3)
    _label(effect, "Effect on held-out pairs", "strength", "shift of log odds, nats per token")
    effect.axhline(0.5, color="grey", lw=0.6, ls="--")
    effect.axhline(-0.5, color="grey", lw=0.6, ls="--")
    effect.legend(fontsize=8)
    _label(fluency, "Fluency on neutral texts", "strength", "perplexity ratio")
    fluency.axhline(1.5, color="grey", lw=0.6, ls="--")
    names = [concept.name for concept in concepts]
    specificity.bar(names, [_half_span(concept) for concept in concepts], label="the concept")
    specificity.bar(
        names, [concept.random_shift for concept in concepts], width=0.4, label="random, equal norm"
    )
    _label(specificity, "Specificity", "", "mean shift at strength 1, nats per token")
    specificity.legend(fontsize=8)
    positions = range(len(concepts))
    divergence.bar([p - 0.2 for p in positions], [c.divergence[-1.0] for c in concepts], 0.4, label="-1")
    divergence.bar([p + 0.2 for p in positions], [c.divergence[1.0] for c in concepts], 0.4, label="+1")
    divergence.set_xticks(positions, names)
    _label(divergence, "Off target: KL divergence on neutral texts", "", "nats per token")
    divergence.legend(fontsize=8)
    for axes in (specificity, divergence):
        axes.tick_params(axis="x", labelrotation=30)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def _half_span(concept: Concept) -> float:
    return (concept.shifts[1.0] - concept.shifts[-1.0]) / 2


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)

"""Draws the evaluation as one picture."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "tiller"  # the same figures give the same file

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from benchmarks.steering.compare import OURS, PROMPT, Comparison  # noqa: E402
from benchmarks.steering.measure import STRENGTHS, Evaluated  # noqa: E402
from benchmarks.steering.requirements import rivals  # noqa: E402

_COLUMNS = 4


def draw(concepts: list[Evaluated], file: Path) -> None:
    """A panel for each goal, and below them two panels for all concepts together."""
    comparisons = [comparison for concept in concepts for comparison in concept.comparisons]
    rows = -(-len(comparisons) // _COLUMNS)
    figure = plt.figure(figsize=(14, 2.7 * rows + 4))
    grid = figure.add_gridspec(rows + 1, _COLUMNS, height_ratios=[*[2.7] * rows, 4])
    for number, comparison in enumerate(comparisons):
        _draw_comparison(figure.add_subplot(grid[number // _COLUMNS, number % _COLUMNS]), comparison)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    effect = figure.add_subplot(grid[rows, : _COLUMNS // 2])
    fluency = figure.add_subplot(grid[rows, _COLUMNS // 2 :])
    for concept in concepts:
        effect.plot(STRENGTHS, [concept.shifts[s] for s in STRENGTHS], marker="o", ms=3, label=concept.name)
        fluency.plot(STRENGTHS, [concept.ratios[s] for s in STRENGTHS], marker="o", ms=3)
    _label(effect, "Effect on held-out pairs", "strength", "shift of log odds, nats per token")
    effect.legend(fontsize=7)
    _label(fluency, "Perplexity of neutral texts", "strength", "ratio")
    figure.tight_layout()
    figure.legend(handles, labels, loc="upper center", ncols=3, fontsize=9)
    figure.subplots_adjust(top=1 - 0.9 / figure.get_figheight())
    figure.savefig(file, metadata={"Date": None})


def _draw_comparison(axes: Axes, comparison: Comparison) -> None:
    """Gain over the rise of repetition, for all coefficients of each way. Fluent answers are filled."""
    colors = {OURS: "black", PROMPT: "grey"} | {
        way: f"C{number}" for number, way in enumerate(rivals(comparison))
    }
    for way in comparison.ways:
        trials, color = comparison.of(way), colors[way]
        axes.plot([t.repetition for t in trials], [t.gain for t in trials], lw=0.8, label=way, color=color)
        for trial in trials:
            fill = color if comparison.is_fluent(trial) else "none"
            axes.plot(trial.repetition, trial.gain, "o", ms=4, mec=color, mfc=fill)
    _label(axes, comparison.goal, "rise of repetition", "gain")


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)

"""Draws the shares of the limits, and the cost of options as ratios, as one picture."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure as Picture

from benchmarks.gpu.figures import Figure

_LINE = 0.24  # inches
_FRAME = 0.9  # inches around the bars of each half
_COLOUR = "#3b6ea5"


def draw(figures: Sequence[Figure], device: str, dtype: str) -> str:
    """SVG with a bar for each figure that has a limit, and a point for each that has a ratio."""
    shares = [figure for figure in figures if figure.share_of_limit is not None]
    ratios = [figure for figure in figures if figure.ratio is not None]
    heights = [_FRAME + _LINE * max(len(half), 1) for half in (shares, ratios)]
    picture = Picture(figsize=(9, sum(heights)), layout="constrained")
    upper, lower = picture.subplots(2, height_ratios=heights)
    _draw_shares(upper, shares)
    _draw_ratios(lower, ratios)
    picture.suptitle(f"{device}, {dtype}", fontsize=10)
    written = io.StringIO()
    picture.savefig(written, format="svg")
    return written.getvalue()


def _draw_shares(axes: Any, figures: Sequence[Figure]) -> None:
    shares = [figure.share_of_limit or 0.0 for figure in figures]
    bars = axes.barh(range(len(figures)), shares, color=_COLOUR, height=0.7)
    axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3, fontsize=7)
    axes.axvline(1.0, color="grey", linestyle=":")
    axes.set_xlim(0, max(1.15, *(share * 1.1 for share in shares), 0))
    axes.set_xlabel("share of the device's measured limit", fontsize=8)
    _label(axes, figures)


def _draw_ratios(axes: Any, figures: Sequence[Figure]) -> None:
    rows = range(len(figures))
    ratios = [figure.ratio or 0.0 for figure in figures]
    for place, figure in zip(rows, figures, strict=True):
        if figure.ratio_range is not None:
            axes.plot(figure.ratio_range, (place, place), color=_COLOUR, linewidth=3, alpha=0.4)
    axes.plot(ratios, rows, "o", color=_COLOUR, markersize=4)
    for place, ratio in zip(rows, ratios, strict=True):
        axes.annotate(f"{ratio:.3f}", (ratio, place), (0, 4), textcoords="offset points", fontsize=7)
    axes.axvline(1.0, color="grey", linestyle=":")
    axes.set_xlim(min(0.95, *(ratio - 0.02 for ratio in ratios), 1), max(1.1, *(r * 1.05 for r in ratios), 1))
    axes.set_xlabel("time of a step, divided by the time without the option (bars: quartiles)", fontsize=8)
    _label(axes, figures)


def _label(axes: Any, figures: Sequence[Figure]) -> None:
    labels = [f"{figure.model}: {figure.what}" for figure in figures]
    axes.set_yticks(range(len(figures)), labels, fontsize=7)
    axes.set_ylim(len(figures) - 0.3, -0.7)
    axes.tick_params(axis="x", labelsize=7)

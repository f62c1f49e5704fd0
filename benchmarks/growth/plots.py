"""Draws the curves as one picture, with a panel for each."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.growth.curves import FLAT_TOLERANCE, Curve

_WIDTH, _HEIGHT = 4.6, 3.4  # inches, of one panel


def draw(curves: Sequence[Curve], file: Path) -> None:
    """Solid: faster halves. Dashed: medians. Dotted: how steep a curve may be."""
    figure = Figure(figsize=(_WIDTH * 2, _HEIGHT * -(-len(curves) // 2)))
    grid = figure.subplots(-(-len(curves) // 2), 2, squeeze=False)
    for axes, curve in zip(grid.flat, curves, strict=True):
        _draw_panel(axes, curve)
    figure.tight_layout()
    figure.savefig(file, dpi=150)


def _draw_panel(axes: Axes, curve: Curve) -> None:
    sizes = [point.size for point in curve.points]
    axes.plot(
        sizes, [point.cost * 1e3 for point in curve.points], "o-", color="C0", ms=3, label="faster half"
    )
    axes.plot(sizes, [point.median * 1e3 for point in curve.points], "--", color="C0", lw=0.8, label="median")
    axes.plot(sizes, _steepest_allowed(curve), ":", color="grey", label=_limit(curve))
    axes.set_xscale("symlog" if sizes[0] == 0 else "log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=7)
    axes.minorticks_off()
    if curve.exponent is None:
        axes.set_ylim(bottom=0)
    else:
        axes.set_yscale("log", base=2)
        costs = [point.cost * 1e3 for point in curve.points]
        axes.set_ylim(min(costs) / 2, max(costs) * 2)
    axes.set_title(curve.name, fontsize=9)
    axes.set_xlabel(curve.size)
    axes.set_ylabel("ms per token")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _steepest_allowed(curve: Curve) -> list[float]:
    """In milliseconds. Through the last point; for a curve that must be flat, its upper limit."""
    first, last = curve.points[0], curve.points[-1]
    if curve.exponent is None:
        return [first.cost * 1e3 * (1 + FLAT_TOLERANCE)] * len(curve.points)
    return [last.cost * 1e3 * (point.size / last.size) ** curve.exponent for point in curve.points]


def _limit(curve: Curve) -> str:
    return f"first + {FLAT_TOLERANCE:.0%}" if curve.exponent is None else f"slope {curve.exponent}"

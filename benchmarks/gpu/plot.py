"""Draws the shares of the limits as one picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure as Picture

from benchmarks.gpu.speed import Figure

_LINE = 0.28  # inches


def draw(figures: Sequence[Figure], device: str, file: Path) -> None:
    """Draws a bar for each figure that has a limit."""
    shown = [figure for figure in figures if figure.share_of_limit is not None]
    picture = Picture(figsize=(9, 1.2 + _LINE * len(shown)))
    axes = picture.subplots()
    labels = [f"{figure.model}: {figure.what}" for figure in shown]
    axes.barh(range(len(shown)), [figure.share_of_limit or 0.0 for figure in shown])
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1.0, color="grey", linestyle=":")
    axes.set_xlabel("share of the limit; with steering: share of the unsteered speed")
    axes.set_title(device, fontsize=9)
    picture.tight_layout()
    picture.savefig(file)

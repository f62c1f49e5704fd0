"""Draws a soak. Only this module needs matplotlib, which the extra `eval` installs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.resources import MIB
from benchmarks.soak.findings import PARTS, Part, Soak
from benchmarks.soak.samples import Sample

Curve = Callable[[Sample], float]


def draw(soak: Soak, file: Path) -> None:
    """Draws panels for the memory of gateway and worker, for files and threads, and for the gauges."""
    panels = {f"{name}: resident memory, MiB": {name: _rss(part)} for name, part in PARTS.items()}
    panels["open files and threads"] = {
        f"{name}, {what}": curve for name, part in PARTS.items() for what, curve in _held(part).items()
    }
    panels["gauges in /metrics"] = {name: _gauge(name) for name in sorted(soak.after.gauges)}
    figure = Figure((9, 2.5 * len(panels)))
    for axes, (title, curves) in zip(figure.subplots(len(panels), sharex=True), panels.items(), strict=True):
        _plot(axes, soak, curves)
        axes.set_title(title, fontsize=9)
    axes.set_xlabel("minutes; dashed: at rest after the load")
    figure.tight_layout()
    figure.savefig(file)


def _plot(axes: Any, soak: Soak, curves: dict[str, Curve]) -> None:
    minutes = [sample.seconds / 60 for sample in soak.samples]
    for number, (name, curve) in enumerate(curves.items()):
        axes.plot(minutes, [curve(sample) for sample in soak.samples], color=f"C{number}", lw=1, label=name)
        axes.axhline(curve(soak.after), color=f"C{number}", lw=0.8, ls="--")
    axes.grid(alpha=0.3)
    if len(curves) > 1:
        axes.legend(fontsize=7)


def _rss(part: Part) -> Curve:
    return lambda sample: part(sample).rss_bytes / MIB


def _held(part: Part) -> dict[str, Curve]:
    return {
        "files": lambda sample: part(sample).open_files,
        "threads": lambda sample: part(sample).threads,
    }


def _gauge(name: str) -> Curve:
    return lambda sample: sample.gauges.get(name, 0.0)

"""Draws the figures. Only this module knows matplotlib, and imports it only if a plot is requested."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from app.bench.client import BenchError
from app.bench.figures import Figures

_HINT = "a plot needs matplotlib, which the extra `eval` installs: pip install 'tiller[eval]'"
_WIDTH, _HEIGHT = 4.6, 3.4  # inches; size of one panel

Curve = Callable[[Figures], float | None]
# Title, solid curve, dashed curve.
_PANELS: tuple[tuple[str, Curve, Curve | None], ...] = (
    ("output tokens per second", attrgetter("output_tokens_per_second"), None),
    (
        "time to first token, s, p50 and (dashed) p99",
        attrgetter("time_to_first_token_p50"),
        attrgetter("time_to_first_token_p99"),
    ),
    (
        "inter-token latency, s, p50 and (dashed) p99",
        attrgetter("inter_token_latency_p50"),
        attrgetter("inter_token_latency_p99"),
    ),
)


def check_plot(file: Path) -> None:
    """Raises BenchError if the file's format is not supported, or without matplotlib."""
    formats = _new_figure().canvas.get_supported_filetypes()
    if file.suffix.removeprefix(".") not in formats:
        raise BenchError(f"{file}: the name of a plot must end with one of " + ", ".join(sorted(formats)))


def draw(figures: Sequence[Figures], file: Path) -> None:
    """Draws a row of panels for each prompt length, with a curve for each server: p50 solid, p99 dashed.

    Raises BenchError without matplotlib.
    """
    lengths = sorted({row.point.prompt_tokens for row in figures})
    canvas = _new_figure(_WIDTH * len(_PANELS), _HEIGHT * len(lengths))
    grid = canvas.subplots(len(lengths), len(_PANELS), squeeze=False)
    for axes, length in zip(grid, lengths, strict=True):
        rows = [row for row in figures if row.point.prompt_tokens == length]
        for panel, (title, solid, dashed) in zip(axes, _PANELS, strict=True):
            _draw_panel(panel, rows, solid, dashed)
            panel.set_title(f"{title}\nprompts of {_length(rows, length)}", fontsize=9)
    grid[0][0].legend(fontsize=8)
    canvas.tight_layout()
    _save(canvas, file)


def _draw_panel(panel: Any, rows: list[Figures], solid: Curve, dashed: Curve | None) -> None:
    for number, server in enumerate(dict.fromkeys(row.server for row in rows)):
        own = sorted((row for row in rows if row.server == server), key=lambda row: row.point.concurrency)
        streams = [row.point.concurrency for row in own]
        color = f"C{number}"
        panel.plot(streams, [_value(solid(row)) for row in own], "o-", color=color, ms=3, label=server)
        if dashed is not None:
            panel.plot(streams, [_value(dashed(row)) for row in own], "o--", color=color, ms=2, lw=0.8)
    streams = sorted({row.point.concurrency for row in rows})
    panel.set_xscale("log", base=2)
    panel.set_xticks(streams, [str(stream) for stream in streams])
    panel.set_xlabel("streams")
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)


def _value(value: float | None) -> float:
    """NaN makes a gap in the curve where all requests failed."""
    return float("nan") if value is None else value


def _length(rows: list[Figures], target: int) -> str:
    measured = [row.prompt_tokens_p50 for row in rows if row.prompt_tokens_p50 is not None]
    return f"{measured[0] if measured else target:.0f} tokens"


def _new_figure(width: float = 1, height: float = 1) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BenchError(_HINT) from None
    return Figure(figsize=(width, height))


def _save(canvas: Any, file: Path) -> None:
    import matplotlib

    # No date and a fixed salt, so that the same figures give the same file.
    metadata = {"Date": None} if file.suffix == ".svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "tiller"}):
        canvas.savefig(file, metadata=metadata)

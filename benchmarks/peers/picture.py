"""Draws docs/throughput.svg from the tables of docs/performance.md.

python -m benchmarks.peers.picture
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Picture

_DOCS = Path(__file__).parents[2] / "docs"
PICTURE = _DOCS / "throughput.svg"
PROMPT_TOKENS = 135
_NAMES = {
    "tiller": "Tiller, 8 bits",
    "llama.cpp": "llama.cpp, 4 bits",
    "tiller-full": "Tiller, float32",
    "vllm": "vLLM, bfloat16",
}
_PANELS = (("tiller", "llama.cpp"), ("tiller-full", "vllm"))
_COLOURS = ("#3b6ea5", "#c9c9c9")
_ROW = re.compile(rf"^\| {PROMPT_TOKENS} \| (\d+) \| ([\w.-]+) \| ([\d.]+) \|", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """A row of a table that compares servers."""

    streams: int
    server: str
    tokens_per_second: float


def main() -> None:
    with matplotlib.rc_context({"svg.hashsalt": "tiller"}):
        draw(read_rows()).savefig(PICTURE, metadata={"Date": None})


def read_rows() -> list[Row]:
    page = (_DOCS / "performance.md").read_text(encoding="utf-8")
    return [Row(int(streams), server, float(rate)) for streams, server, rate in _ROW.findall(page)]


def draw(rows: Sequence[Row]) -> Picture:
    picture = Picture(figsize=(8, 2.9), layout="constrained")
    panels = picture.subplots(1, len(_PANELS), width_ratios=(4, 3))
    for axes, servers in zip(panels, _PANELS, strict=True):
        _draw_panel(axes, rows, servers)
    panels[0].set_ylabel("tokens per second")
    picture.suptitle(
        f"Throughput on two cores with AVX2: SmolLM2 135M, {PROMPT_TOKENS} tokens in, 64 out", fontsize=10
    )
    return picture


def _draw_panel(axes: Any, rows: Sequence[Row], servers: tuple[str, str]) -> None:
    streams = sorted({row.streams for row in rows if row.server == servers[0]})
    rates = {(row.server, row.streams): row.tokens_per_second for row in rows}
    for number, server in enumerate(servers):
        places = [place + 0.4 * number for place in range(len(streams))]
        bars = axes.bar(
            places,
            [rates[server, count] for count in streams],
            0.38,
            color=_COLOURS[number],
            label=_NAMES[server],
        )
        if number == 0:
            ratios = [rates[servers[0], count] / rates[servers[1], count] for count in streams]
            axes.bar_label(bars, [f"{ratio:.1f} x" for ratio in ratios], padding=2, fontsize=8)
    axes.set_xticks([place + 0.2 for place in range(len(streams))], [str(count) for count in streams])
    axes.set_xlabel("streams")
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left")


if __name__ == "__main__":
    main()

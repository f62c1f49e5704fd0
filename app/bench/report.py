"""Formats figures as a table and as JSON, and describes problems in lines of text."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from app.bench.figures import Figures

Column = Callable[[Figures], str]
NO_VALUE = "–"

_COLUMNS: dict[str, Column] = {
    "prompt tokens": lambda row: _number(row.prompt_tokens_p50, ".0f"),
    "streams": lambda row: str(row.point.concurrency),
    "server": lambda row: row.server,
    "tok/s": lambda row: _number(row.output_tokens_per_second, ".1f"),
}
_LATENCIES: dict[str, Column] = {
    "TTFT p50, ms": lambda row: _milliseconds(row.time_to_first_token_p50),
    "TTFT p99, ms": lambda row: _milliseconds(row.time_to_first_token_p99),
    "ITL p50, ms": lambda row: _milliseconds(row.inter_token_latency_p50),
    "ITL p99, ms": lambda row: _milliseconds(row.inter_token_latency_p99),
    "requests": lambda row: str(row.requests),
    "failed": lambda row: str(row.failed),
}


def table(figures: Iterable[Figures], more: Mapping[str, Column] | None = None) -> str:
    """A Markdown table. TTFT is the time to first token, ITL the inter-token latency.

    `more`: additional columns, after the throughput.
    """
    columns = {**_COLUMNS, **(more or {}), **_LATENCIES}
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(show(row) for show in columns.values()) + " |" for row in figures]
    return "\n".join(lines)


def by_point(figures: Iterable[Figures]) -> list[Figures]:
    """Sorts by point, in the order of the first measurements, so that servers stand side by side."""
    rows = list(figures)
    order = {point: position for position, point in enumerate(dict.fromkeys(row.point for row in rows))}
    return sorted(rows, key=lambda row: order[row.point])


def to_json(figures: Iterable[Figures], **conditions: Any) -> str:
    """A JSON object with the conditions and all figures. Times are in seconds."""
    content = {**conditions, "figures": [_flat(row) for row in figures]}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def problems(figures: Iterable[Figures], tokens: int) -> list[str]:
    """One line per server and kind of problem. Empty if all answers are complete and have `tokens` tokens."""
    lines = []
    by_server = sorted(figures, key=lambda row: row.server)
    for server, group in groupby(by_server, key=lambda row: row.server):
        lines += _problems(server, list(group), tokens)
    return lines


def _problems(server: str, rows: Sequence[Figures], tokens: int) -> list[str]:
    lines = []
    requests = sum(row.requests for row in rows)
    if failed := sum(row.failed for row in rows):
        reason = next(row.error for row in rows if row.error is not None)
        lines.append(f"{server}: {failed} of {requests} requests failed, the first one: {reason}")
    if wrong := sum(row.wrong_lengths for row in rows):
        lines.append(
            f"{server}: {wrong} of {requests} answers do not have {tokens} tokens, so its figures cannot be "
            "compared: are all its end-of-turn tokens banned?"
        )
    return lines


def _flat(row: Figures) -> dict[str, Any]:
    fields = asdict(row)
    return {"server": fields.pop("server"), **fields.pop("point"), **fields}


def _number(value: float | None, style: str) -> str:
    return NO_VALUE if value is None else format(value, style)


def _milliseconds(seconds: float | None) -> str:
    return NO_VALUE if seconds is None else f"{seconds * 1e3:.0f}"

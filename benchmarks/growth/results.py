"""Formats the results: tables and verdicts in Markdown, and all times as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.growth.curves import Curve, judge, relative, slopes

_COLUMNS = ("ms per token, median", "faster half", "x first", "log-log slope")


def table(curve: Curve) -> str:
    """A curve as a table in Markdown. Ratios and slopes are those of the faster halves."""
    steepness = slopes(curve.points)
    if curve.exponent is None:
        steepness = [None] * len(curve.points)
    lines = [f"| {curve.size} | " + " | ".join(_COLUMNS) + " |", "|---" * (1 + len(_COLUMNS)) + "|"]
    for point, ratio, slope in zip(curve.points, relative(curve.points), steepness, strict=True):
        times = f"{point.median * 1e3:.3f} | {point.cost * 1e3:.3f}"
        lines.append(f"| {point.size} | {times} | {ratio:.3f} | {'–' if slope is None else f'{slope:.2f}'} |")
    return "\n".join(lines)


def render(curves: Sequence[Curve], conditions: Mapping[str, Any]) -> str:
    """The page in Markdown: conditions, a table for each curve, verdicts."""
    machine = conditions["machine"]
    lines = [
        f"{conditions['model']}, quantization {conditions['quantization']}, {conditions['dtype']} on "
        f"{conditions['device']}, {conditions['threads']} threads, torch {conditions['torch']}, commit "
        f"{conditions['commit']}; {machine['processor']}, {machine['cores']} cores.",
    ]
    for curve in curves:
        lines += ["", f"{curve.name}:".capitalize(), "", table(curve)]
    return "\n".join([*lines, "", *(f"- {judge(curve)}" for curve in curves), ""])


def to_json(curves: Sequence[Curve], conditions: Mapping[str, Any]) -> str:
    """A JSON object with `conditions` and all curves. Times are in seconds per token."""
    content = {
        **conditions,
        "curves": [asdict(curve) | {"verdict": _verdict(curve)} for curve in curves],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _verdict(curve: Curve) -> dict[str, Any]:
    verdict = judge(curve)
    return asdict(verdict) | {"holds": verdict.holds}

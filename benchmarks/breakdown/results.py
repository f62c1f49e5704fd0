"""The figures of a breakdown, and tables of them. Pure."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.breakdown.limits import Limits


@dataclass(frozen=True)
class Part:
    """A part of a step, on one core."""

    name: str
    seconds: float
    operations: float = 0.0
    """Multiplications and additions. 0: not counted."""
    rate: float = 0.0
    """Operations per second that the processor can reach. 0: not known."""
    read: float = 0.0
    """Bytes that the part reads at least. 0: not counted."""

    def least_seconds(self, limits: Limits) -> float:
        """The time that the part would take at the processor's limits. 0: not known."""
        computing = self.operations / self.rate if self.rate else 0.0
        reading = self.read / limits.read_bytes if limits.read_bytes else 0.0
        return max(computing, reading)


@dataclass(frozen=True)
class Breakdown:
    """A step, or the steps of a prompt: on one core, and as a whole on all."""

    workload: str
    tokens: int
    seconds: float
    """Of the whole: the parts, and what is in none of them."""
    parts: tuple[Part, ...]
    threads: int = 1
    threaded_seconds: float = 0.0
    """Wall time of the whole with so many threads. 0: not measured."""


def render(breakdowns: Sequence[Breakdown], limits: Limits) -> str:
    return "\n\n".join([_limits_line(limits), *(_table(breakdown, limits) for breakdown in breakdowns)])


def to_json(breakdowns: Sequence[Breakdown], limits: Limits, conditions: dict[str, Any]) -> str:
    content = {
        "conditions": conditions,
        "limits": asdict(limits),
        "breakdowns": [asdict(breakdown) for breakdown in breakdowns],
    }
    return json.dumps(content, indent=2) + "\n"


def _limits_line(limits: Limits) -> str:
    rates = limits.byte_products, limits.word_products, limits.float_products
    names = "8-bit products", "16-bit products", "float32 products"
    known = [f"{name} {rate / 1e9:.0f} GOP/s" for name, rate in zip(names, rates, strict=True) if rate]
    return f"One core reaches: {', '.join([*known, f'memory {limits.read_bytes / 1e9:.1f} GB/s'])}."


def _table(breakdown: Breakdown, limits: Limits) -> str:
    each = breakdown.seconds / breakdown.tokens * 1e3
    total = f"{breakdown.seconds * 1e3:.1f} ms, {each:.2f} ms per token{_threaded(breakdown)}"
    lines = [
        f"{breakdown.workload}: {total}",
        "",
        "| part | ms | share | GOP/s | GB/s | at the limit, ms | reached |",
        "|---|---|---|---|---|---|---|",
    ]
    rest = breakdown.seconds - sum(part.seconds for part in breakdown.parts)
    lines += [_row(part, breakdown.seconds, limits) for part in (*breakdown.parts, Part("rest", rest))]
    return "\n".join(lines)


def _threaded(breakdown: Breakdown) -> str:
    if not breakdown.threaded_seconds:
        return ""
    threaded, factor = breakdown.threaded_seconds * 1e3, breakdown.seconds / breakdown.threaded_seconds
    return f"; with {breakdown.threads} threads {threaded:.1f} ms, {factor:.2f} times as fast"


def _row(part: Part, total: float, limits: Limits) -> str:
    least = part.least_seconds(limits)
    cells = [
        part.name,
        f"{part.seconds * 1e3:.2f}",
        f"{part.seconds / total:.0%}",
        f"{part.operations / part.seconds / 1e9:.0f}" if part.operations else "–",
        f"{part.read / part.seconds / 1e9:.1f}" if part.read else "–",
        f"{least * 1e3:.2f}" if least else "–",
        f"{least / part.seconds:.0%}" if least else "–",
    ]
    return f"| {' | '.join(cells)} |"

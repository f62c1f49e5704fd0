"""Compares throughput with the fastest peer and with plain transformers. Pure."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from app.bench.figures import Figures, Point
from app.bench.report import NO_VALUE, Column


@dataclass(frozen=True)
class Ratio:
    """A server's throughput, divided by that of `peer`, the fastest peer at this point."""

    peer: str
    by_round: tuple[float, ...]
    """One ratio for each round. Within a round, both servers were measured in the same minutes."""

    def __str__(self) -> str:
        """The median, and the range if there is more than one round."""
        low, high = min(self.by_round), max(self.by_round)
        spread = f" ({low:.2f}-{high:.2f})" if len(self.by_round) > 1 else ""
        return f"{median(self.by_round):.2f}{spread}"


def ratios(figures: Iterable[Figures], peers: Collection[str]) -> dict[tuple[str, Point], Ratio]:
    """The ratio of each server that is not a peer, at each point where a peer answered."""
    by_point: dict[Point, list[Figures]] = {}
    for row in figures:
        by_point.setdefault(row.point, []).append(row)
    found = {}
    for point, rows in by_point.items():
        answered = [row for row in rows if row.server in peers and row.output_tokens]
        if not answered:
            continue
        best = max(answered, key=lambda row: row.output_tokens_per_second)
        for row in rows:
            if row.server not in peers and (values := _by_round(row, best)):
                found[row.server, point] = Ratio(best.server, values)
    return found


def columns(figures: Sequence[Figures], peers: Collection[str], generate: float | None) -> dict[str, Column]:
    """The columns beside the throughput. `generate`: tokens per second of plain transformers."""
    found = ratios(figures, peers)
    more: dict[str, Column] = {}
    if found:
        more["x best peer"] = lambda row: str(found.get((row.server, row.point), NO_VALUE))
        more["best peer"] = lambda row: (
            found[row.server, row.point].peer if (row.server, row.point) in found else NO_VALUE
        )
    if generate is not None:
        more["x generate"] = lambda row: f"{row.output_tokens_per_second / generate:.2f}"
    return more


def _by_round(row: Figures, other: Figures) -> tuple[float, ...]:
    pairs = zip(row.output_tokens_per_second_by_round, other.output_tokens_per_second_by_round, strict=False)
    return tuple(own / reference for own, reference in pairs if reference)

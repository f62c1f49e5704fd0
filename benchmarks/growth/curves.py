"""The cost per token over a size, and whether it grows no faster than it may. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.steering_cost import compare, faster_half

SLOPE_TOLERANCE = 0.15
"""What noise may add to a log-log slope: 23% from one end of a stretch of factor 4 to the other."""
FLAT_TOLERANCE = 0.05
"""What noise may add to a cost that is to stay the same, as a share of it."""
STRETCH = 4
"""Slopes are taken between sizes at least this factor apart."""


@dataclass(frozen=True)
class Point:
    size: int
    seconds: tuple[float, ...]
    """Per token, of each measurement."""

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def cost(self) -> float:
        """Seconds per token, as little disturbed by the rest of the machine as can be had."""
        return faster_half(self.seconds)


@dataclass(frozen=True)
class Curve:
    name: str
    """Which token's cost it is."""
    size: str
    """What grows."""
    exponent: int | None
    """The cost per token may grow like this power of the size; None: it stays that of the first point."""
    points: tuple[Point, ...]
    """By size, ascending."""


@dataclass(frozen=True)
class Verdict:
    curve: str
    quantity: str
    value: float
    limit: float
    """Tolerance included."""

    @property
    def holds(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        word = "holds" if self.holds else "VIOLATED"
        return f"{self.curve}: {self.quantity} {self.value:.2f}, at most {self.limit:.2f}: {word}"


def per_token(seconds: Mapping[int, Sequence[float]], tokens: Mapping[int, int]) -> tuple[Point, ...]:
    """From the times of each size, and how many tokens each such time brought."""
    return tuple(
        Point(size, tuple(time / tokens[size] for time in seconds[size])) for size in sorted(seconds)
    )


def slopes(points: Sequence[Point]) -> list[float | None]:
    """Of log cost over log size, from the nearest point at least STRETCH times smaller to each point.

    None where there is no such point.
    """
    found: list[float | None] = []
    for point in points:
        smaller = [other for other in points if 0 < other.size * STRETCH <= point.size]
        found.append(_slope(smaller[-1], point) if smaller else None)
    return found


def judge(curve: Curve) -> Verdict:
    """By the steepest stretch, so that a bad end cannot hide behind a long flat beginning.

    Where the cost is to stay that of the first point, by the dearest other one. Raises ValueError if no two
    points are far enough apart to tell.
    """
    if curve.exponent is None:
        return Verdict(curve.name, "dearest / first", _dearest(curve.points), 1 + FLAT_TOLERANCE)
    steepest = max(slope for slope in slopes(curve.points) if slope is not None)
    return Verdict(curve.name, "steepest log-log slope", steepest, curve.exponent + SLOPE_TOLERANCE)


def relative(points: Sequence[Point]) -> list[float]:
    """Each point's cost over that of the first."""
    return [point.cost / points[0].cost for point in points]


def _dearest(points: Sequence[Point]) -> float:
    """Over the first point: by faster halves or by the median of the rounds' ratios, whichever is lower.

    What really is dearer is so by both, and noise seldom moves both.
    """
    first, *others = points
    return max(min(point.cost / first.cost, _median_ratio(point, first)) for point in others)


def _median_ratio(point: Point, reference: Point) -> float:
    """Of two points whose n-th measurements are of the same round."""
    ratio, _, _ = compare(list(point.seconds), list(reference.seconds))
    return ratio


def _slope(start: Point, end: Point) -> float:
    return math.log(end.cost / start.cost) / math.log(end.size / start.size)

"""Curves of the cost per token over a size, and verdicts on how fast they grow. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.steering_cost import compare, faster_half

SLOPE_TOLERANCE = 0.15
"""Tolerance for noise in a log-log slope: 23% over a stretch of factor 4."""
FLAT_TOLERANCE = 0.05
"""Tolerance for noise in a cost that should stay the same, as a share of it."""
STRETCH = 4
"""Slopes are computed between sizes that are at least this factor apart."""


@dataclass(frozen=True)
class Point:
    size: int
    seconds: tuple[float, ...]
    """Seconds per token of each measurement."""

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def cost(self) -> float:
        """Seconds per token: the mean of the faster half, which other work on the machine disturbs least."""
        return faster_half(self.seconds)


@dataclass(frozen=True)
class Curve:
    name: str
    """What is measured."""
    size: str
    """What the size counts."""
    exponent: int | None
    """The cost per token may grow like this power of the size. None: it must stay that of the first point."""
    points: tuple[Point, ...]
    """In ascending order of size."""


@dataclass(frozen=True)
class Verdict:
    curve: str
    quantity: str
    value: float
    limit: float
    """Includes the tolerance."""

    @property
    def holds(self) -> bool:
        return self.value <= self.limit

    def __str__(self) -> str:
        word = "holds" if self.holds else "VIOLATED"
        return f"{self.curve}: {self.quantity} {self.value:.2f}, at most {self.limit:.2f}: {word}"


def per_token(seconds: Mapping[int, Sequence[float]], tokens: Mapping[int, int]) -> tuple[Point, ...]:
    """Makes points from the times of each size and the number of tokens computed in each of these times."""
    return tuple(
        Point(size, tuple(time / tokens[size] for time in seconds[size])) for size in sorted(seconds)
    )


def slopes(points: Sequence[Point]) -> list[float | None]:
    """Slopes of log cost over log size, to each point from the nearest one at least STRETCH times smaller.

    None if there is no such point.
    """
    found: list[float | None] = []
    for point in points:
        smaller = [other for other in points if 0 < other.size * STRETCH <= point.size]
        found.append(_slope(smaller[-1], point) if smaller else None)
    return found


def judge(curve: Curve) -> Verdict:
    """Judges a curve by its steepest stretch, so that a long flat beginning cannot hide a bad end.

    If the cost must stay that of the first point, judges by the highest cost of the others. Raises ValueError
    if no two points are far enough apart.
    """
    if curve.exponent is None:
        return Verdict(curve.name, "highest / first", _highest(curve.points), 1 + FLAT_TOLERANCE)
    steepest = max(slope for slope in slopes(curve.points) if slope is not None)
    return Verdict(curve.name, "steepest log-log slope", steepest, curve.exponent + SLOPE_TOLERANCE)


def relative(points: Sequence[Point]) -> list[float]:
    """Each point's cost, divided by that of the first."""
    return [point.cost / points[0].cost for point in points]


def _highest(points: Sequence[Point]) -> float:
    """The highest cost of the other points, divided by that of the first.

    For each point, the ratio is that of the faster halves or the median of the rounds' ratios, whichever is
    lower: a real difference shows in both, and noise rarely shows in both.
    """
    first, *others = points
    return max(min(point.cost / first.cost, _median_ratio(point, first)) for point in others)


def _median_ratio(point: Point, reference: Point) -> float:
    """The median of the rounds' ratios. The n-th measurements of both points are from the same round."""
    ratio, _, _ = compare(list(point.seconds), list(reference.seconds))
    return ratio


def _slope(start: Point, end: Point) -> float:
    return math.log(end.cost / start.cost) / math.log(end.size / start.size)

"""How many workers a model should have: a function from loads to counts. Knows no clock and no processes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """A model's requests in all gateways together."""

    running: int
    waiting: int


@dataclass(frozen=True)
class Rules:
    least: int
    most: int
    max_running: int
    """How many requests one worker computes together."""
    grow_after: float
    shrink_after: float
    """In seconds."""


@dataclass(frozen=True)
class Scale:
    """How many workers a model should have, and since when its load asks for another number."""

    count: int
    waiting_since: float | None = None
    calm_since: float | None = None


def scaled(before: Scale, load: Load, serving: int, rules: Rules, now: float) -> Scale:
    """The scale after a look at the load, at most one worker larger or smaller. `now`: seconds of any clock.

    `serving`: how many of the model's workers serve. While some still start, none is added and none removed.
    """
    count = min(max(before.count, rules.least), rules.most)
    if count != before.count:
        return Scale(count)
    settled = serving >= count
    waits = load.waiting > 0
    scale = Scale(
        count,
        _since(before.waiting_since, waits and settled, now),
        _since(before.calm_since, settled and not waits and _fits(load, count - 1, rules), now),
    )
    if _lasts(scale.waiting_since, rules.grow_after, now) and count < rules.most:
        return Scale(count + 1)
    if _lasts(scale.calm_since, rules.shrink_after, now) and count > rules.least:
        return Scale(count - 1)
    return scale


def _fits(load: Load, count: int, rules: Rules) -> bool:
    """Whether half of what `count` workers compute together is enough."""
    return load.running <= count * rules.max_running / 2


def _since(before: float | None, holds: bool, now: float) -> float | None:
    if not holds:
        return None
    return now if before is None else before


def _lasts(since: float | None, seconds: float, now: float) -> bool:
    return since is not None and now - since >= seconds

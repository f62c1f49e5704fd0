"""Computes figures from the data of a soak, and finds faults in them. Pure."""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from benchmarks.resources import MIB, Usage
from benchmarks.soak.load import Outcome
from benchmarks.soak.samples import Sample

OPEN_FILES_TOLERANCE = 4
THREADS_TOLERANCE = 40
"""The gateway's thread pool may grow by this many threads, and keeps them."""

_BUSY = re.compile(r"running|waiting|queued|pending|used|in_use|active")
"""A gauge with one of these words in its name must not be higher after the load than before."""

Part = Callable[[Sample], Usage]
PARTS: dict[str, Part] = {"gateway": lambda sample: sample.gateway, "worker": lambda sample: sample.worker}


@dataclass(frozen=True)
class Soak:
    """All data of a soak."""

    outcomes: Sequence[Outcome]
    before: Sample
    """At rest, after one request of each kind."""
    samples: Sequence[Sample]
    """During the load."""
    after: Sample
    """At rest, after the load."""
    became_idle: bool


@dataclass(frozen=True)
class Memory:
    """Resident memory of one part of the server, in MiB, and its growth under load, in MiB per minute."""

    before: float
    peak: float
    after: float
    growth: float
    """Over the second half of the load."""
    growth_by_quarter: tuple[float, float]
    """Over the two quarters of the second half."""

    @property
    def steady_growth(self) -> float:
        """Growth that may be a leak. A batch larger than all before raises only one of the quarters."""
        return min(self.growth, *self.growth_by_quarter)


def memory(soak: Soak, part: Part) -> Memory:
    rss = [part(sample).rss_bytes / MIB for sample in soak.samples]
    return Memory(
        before=part(soak.before).rss_bytes / MIB,
        peak=max(rss, default=0.0),
        after=part(soak.after).rss_bytes / MIB,
        growth=growth(soak.samples, part, 0.5, 1),
        growth_by_quarter=(growth(soak.samples, part, 0.5, 0.75), growth(soak.samples, part, 0.75, 1)),
    )


def growth(samples: Sequence[Sample], part: Part, start: float, end: float) -> float:
    """Growth in MiB per minute: the median slope of all pairs of samples (Theil-Sen estimator).

    `start` and `end` are shares of the load's duration, 0 to 1. Single peaks, which a busy server has, do not
    change the result.
    """
    if not samples:
        return 0.0
    began, lasted = samples[0].seconds, samples[-1].seconds - samples[0].seconds
    points = [
        (sample.seconds / 60, part(sample).rss_bytes / MIB)
        for sample in samples
        if start * lasted <= sample.seconds - began <= end * lasted
    ]
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x2 > x1]
    return statistics.median(slopes) if slopes else 0.0


def count_statuses(outcomes: Sequence[Outcome]) -> dict[str, Counter[str]]:
    """For each kind of request, in alphabetical order: how often each status occurred."""
    counts: dict[str, Counter[str]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.kind):
        counts.setdefault(outcome.kind, Counter())[outcome.status] += 1
    return counts


def faults(soak: Soak, tolerance: float) -> list[str]:
    """One line for each fault. Empty if there is none.

    `tolerance`: limit for the steady growth of the memory of gateway and worker each, in MiB per minute.
    """
    return [
        *_request_faults(soak.outcomes),
        *_memory_faults(soak, tolerance),
        *_leaks(soak),
        *([] if soak.became_idle else ["the server did not become idle"]),
    ]


def _request_faults(outcomes: Sequence[Outcome]) -> list[str]:
    if not outcomes:
        return ["no request was sent"]
    problems = [f"{outcome.kind}: {outcome.problem}" for outcome in outcomes if outcome.problem]
    if not problems:
        return []
    return [f"{len(problems)} of {len(outcomes)} requests failed, the first one: {problems[0]}"]


def _memory_faults(soak: Soak, tolerance: float) -> list[str]:
    grown = {name: memory(soak, part).steady_growth for name, part in PARTS.items()}
    return [
        f"the {name}'s memory grows by at least {rate:.2f} MiB per minute; the limit is {tolerance:g}"
        for name, rate in grown.items()
        if rate > tolerance
    ]


def _leaks(soak: Soak) -> list[str]:
    lines = []
    for name, part in PARTS.items():
        before, after = part(soak.before), part(soak.after)
        if after.open_files > before.open_files + OPEN_FILES_TOLERANCE:
            lines.append(f"the {name} has {after.open_files} open files at rest, {before.open_files} before")
        if after.threads > before.threads + THREADS_TOLERANCE:
            lines.append(f"the {name} has {after.threads} threads at rest, {before.threads} before")
    for gauge, value in soak.after.gauges.items():
        if _BUSY.search(gauge) and value > (before_load := soak.before.gauges.get(gauge, 0.0)):
            lines.append(f"{gauge} is {value:g} at rest, {before_load:g} before")
    return lines

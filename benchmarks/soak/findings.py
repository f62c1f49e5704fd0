"""What a soak found: figures, and what of them is a fault. Pure."""

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
"""The gateway's pool of threads may have so many, and keeps them."""

_BUSY = re.compile(r"running|waiting|queued|pending|used|in_use|active")
"""In the name of a gauge: at rest it is what it was."""

Part = Callable[[Sample], Usage]
PARTS: dict[str, Part] = {"gateway": lambda sample: sample.gateway, "worker": lambda sample: sample.worker}


@dataclass(frozen=True)
class Soak:
    """Everything that was seen."""

    outcomes: Sequence[Outcome]
    before: Sample
    """At rest, after each kind of request was sent once."""
    samples: Sequence[Sample]
    """Under load."""
    after: Sample
    """At rest again."""
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
        """At most this is a leak: a batch larger than all before shows in one of the quarters only."""
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
    """MiB per minute between two moments of the load, 0 to 1: the median slope of all pairs (Theil and Sen).

    Single peaks, which a busy server has, do not move it.
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
    """By kind of request, in alphabetical order: how often each status came."""
    counts: dict[str, Counter[str]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.kind):
        counts.setdefault(outcome.kind, Counter())[outcome.status] += 1
    return counts


def faults(soak: Soak, tolerance: float) -> list[str]:
    """One line for each thing that should not be; none if all is well.

    `tolerance` is how much the memory of each part may grow steadily, in MiB per minute.
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
        f"the {name}'s memory grows by at least {rate:.2f} MiB per minute; allowed is {tolerance:g}"
        for name, rate in grown.items()
        if rate > tolerance
    ]


def _leaks(soak: Soak) -> list[str]:
    lines = []
    for name, part in PARTS.items():
        before, after = part(soak.before), part(soak.after)
        if after.open_files > before.open_files + OPEN_FILES_TOLERANCE:
            lines.append(f"the {name} keeps {after.open_files} files open, {before.open_files} before")
        if after.threads > before.threads + THREADS_TOLERANCE:
            lines.append(f"the {name} keeps {after.threads} threads, {before.threads} before")
    for gauge, value in soak.after.gauges.items():
        if _BUSY.search(gauge) and value > (at_first := soak.before.gauges.get(gauge, 0.0)):
            lines.append(f"{gauge} is {value:g} at rest, {at_first:g} before")
    return lines

"""What is known of a request and of a worker, for logs, metrics and traces. Tells nobody by itself."""

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

from app.schemas.completions import FinishReason, Usage
from inference.interface.protocol import EngineStats, GenerationRequest

INTERVAL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)


PROBED_ROUTES = frozenset({"/health", "/metrics"})
"""Machines ask these every few seconds."""


class Observation:
    """Of one request, from its arrival to the end of its answer. What does not apply to it stays None."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.arrived = time.perf_counter()
        self.arrived_ns = time.time_ns()
        """Since 1970."""
        self.method = "-"
        self.route = "other"
        self.status: int | None = None
        """None also: the answer did not even begin."""
        self.seconds = 0.0
        """Until all of the answer was sent."""
        self.token: str | None = None
        """The name of the caller's access token."""
        self.client_request_id: str | None = None
        self.error: str | None = None
        """The code of what went wrong, also after the status was sent."""
        self.trace_headers: dict[str, str] = {}
        """The caller's `traceparent` and `tracestate`."""
        self.trace_id: str | None = None

        self.asked: GenerationRequest | None = None
        """What the engine was to do for a chat."""
        self.queued_seconds: float | None = None
        """From its arrival until it went to the engine."""
        self.queue_seconds: float | None = None
        """From then on until the engine began with it."""
        self.first_token_seconds: float | None = None
        """From its arrival."""
        self.usage: Usage | None = None
        self.finish_reasons: list[FinishReason | None] | None = None
        """None in it: a choice that was ended before its end."""
        self.messages: list[dict[str, str]] | None = None
        """As are the answers: set only where the operator wants texts in the log."""
        self.answers: list[str] | None = None

    @property
    def concepts(self) -> int:
        """By how many different ones a chat was steered."""
        return len(self.asked.steering.concepts) if self.asked and self.asked.steering else 0

    @property
    def ended(self) -> bool:
        """Whether all of a chat's choices came to an end by themselves."""
        return bool(self.finish_reasons) and None not in (self.finish_reasons or ())

    def queue(self) -> None:
        """It goes to the engine."""
        self.queued_seconds = time.perf_counter() - self.arrived

    def begin(self, queue_seconds: float | None) -> None:
        """The first token is there."""
        self.first_token_seconds = time.perf_counter() - self.arrived
        self.queue_seconds = queue_seconds

    def end(self) -> None:
        self.seconds = time.perf_counter() - self.arrived


Observer = Callable[[Observation], None]
"""Hears of a request when it has been answered."""


class TokenIntervals:
    """A histogram of the seconds between a choice's tokens. Many are the same, and added at once."""

    def __init__(self) -> None:
        self._counts = [0] * (len(INTERVAL_SECONDS) + 1)
        self.seconds = 0.0
        """Sum of all."""

    def add(self, seconds: float, count: int) -> None:
        self._counts[bisect_left(INTERVAL_SECONDS, seconds)] += count
        self.seconds += seconds * count

    @property
    def cumulative(self) -> list[int]:
        """How many were at most as long as each of INTERVAL_SECONDS; and last, how many there were."""
        return list(accumulate(self._counts))


@dataclass(frozen=True)
class WorkerState:
    """A worker as it is now. What it counts begins with zeros whenever it is started."""

    up: bool
    restarts: int = 0
    pid: int | None = None
    """Of its process, while there is one."""
    stats: EngineStats = field(default_factory=EngineStats)
    intervals: TokenIntervals = field(default_factory=TokenIntervals)

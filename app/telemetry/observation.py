"""Data about requests and workers, for logs, metrics and traces. Reports nothing itself."""

import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

from app.schemas.completions import FinishReason, Usage
from inference.interface.protocol import EngineStats
from inference.interface.requests import GenerationRequest

INTERVAL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)


PROBED_ROUTES = frozenset({"/live", "/ready", "/health", "/metrics"})
"""Probes and scrapers call these routes every few seconds."""


class Observation:
    """The data about one request, up to the end of its answer. Fields that do not apply stay None."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.arrived = time.perf_counter()
        self.arrived_ns = time.time_ns()
        """Nanoseconds since 1970."""
        self.method = "-"
        self.route = "other"
        self.status: int | None = None
        """None: no answer was started."""
        self.seconds = 0.0
        """From the arrival until the whole answer was sent."""
        self.token: str | None = None
        """The name of the caller's access token."""
        self.client_request_id: str | None = None
        self.error: str | None = None
        """The error code, also of an error after the status was sent."""
        self.trace_headers: dict[str, str] = {}
        """The caller's `traceparent` and `tracestate`."""
        self.trace_id: str | None = None

        self.model = ""
        """The name of the model, for a chat. Empty until it is known."""
        self.generation_request: GenerationRequest | None = None
        """The request to the engine, for a chat."""
        self.submit_seconds: float | None = None
        """From the arrival until the request was submitted to the engine."""
        self.queue_seconds: float | None = None
        """From the submission until the engine started its first choice."""
        self.first_token_seconds: float | None = None
        """From the arrival until the first token (TTFT)."""
        self.usage: Usage | None = None
        self.finish_reasons: list[FinishReason | None] | None = None
        """One per choice. None: the choice was aborted."""
        self.messages: list[dict[str, str]] | None = None
        """The chat's messages. Set, like `answers`, only if the operator enables texts in the log."""
        self.answers: list[str] | None = None

    @property
    def concepts(self) -> int:
        """The number of different steering concepts of a chat."""
        steering = self.generation_request.steering if self.generation_request else None
        return len(steering.strengths) if steering else 0

    @property
    def is_complete(self) -> bool:
        """Whether every choice of a chat has a finish reason."""
        return bool(self.finish_reasons) and None not in (self.finish_reasons or ())

    def mark_submitted(self) -> None:
        """Called when the request is submitted to the engine."""
        self.submit_seconds = time.perf_counter() - self.arrived

    def mark_first_token(self, queue_seconds: float | None) -> None:
        """Called when the first token arrives. `queue_seconds`: from Generation."""
        self.first_token_seconds = time.perf_counter() - self.arrived
        self.queue_seconds = queue_seconds

    def mark_ended(self) -> None:
        """Called when the answer ends."""
        self.seconds = time.perf_counter() - self.arrived


Observer = Callable[[Observation], None]
"""Called with each request that has been answered."""


class TokenIntervals:
    """A histogram of the inter-token latency in seconds. Equal values are added together."""

    def __init__(self) -> None:
        self._counts = [0] * (len(INTERVAL_SECONDS) + 1)
        self.seconds = 0.0
        """The sum of all values."""

    def add(self, seconds: float, count: int) -> None:
        self._counts[bisect_left(INTERVAL_SECONDS, seconds)] += count
        self.seconds += seconds * count

    @property
    def cumulative(self) -> list[int]:
        """How many values are at most each of INTERVAL_SECONDS. The last item counts all values."""
        return list(accumulate(self._counts))


@dataclass(frozen=True)
class WorkerState:
    """The state of a worker now. `stats` and `intervals` start at zero with each new process."""

    up: bool
    restarts: int = 0
    pid: int | None = None
    """The id of the worker's process. None if there is no process."""
    stats: EngineStats = field(default_factory=EngineStats)
    intervals: TokenIntervals = field(default_factory=TokenIntervals)

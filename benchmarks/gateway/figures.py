"""The figures of the gateway, and tables of them. Pure. Times are in seconds."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.bench.figures import percentile
from app.bench.report import NO_VALUE
from benchmarks.resources import MIB


@dataclass(frozen=True)
class Point:
    """A number of open streams. Each of them gets one token in each engine step."""

    streams: int
    step_seconds: float
    """Time from one engine step to the next. 0: as fast as the clients receive the tokens."""

    def __str__(self) -> str:
        interval = f"every {self.step_seconds * 1e3:g} ms" if self.step_seconds else "as fast as possible"
        return f"{self.streams} streams, steps {interval}"


@dataclass(frozen=True)
class Load:
    """CPU time that the gateway and the load client used in a period of `seconds`."""

    seconds: float
    gateway_seconds: float
    """CPU time of the gateway process, including time in the kernel."""
    client_seconds: float
    """CPU time of the load client's process."""

    @property
    def gateway_cores(self) -> float:
        return self.gateway_seconds / self.seconds

    @property
    def client_cores(self) -> float:
        return self.client_seconds / self.seconds


@dataclass(frozen=True)
class StreamFigures:
    engine: str
    point: Point
    load: Load
    tokens: int
    """Number of tokens that reached the clients, over all streams."""
    health_latencies: Sequence[float]
    """Latencies of /health while the streams ran, measured after `load`."""
    rss_before: int
    """Resident memory of the gateway before the streams started, in bytes."""
    rss_during: int
    rss_after: int
    """After all streams had ended."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.load.seconds

    @property
    def seconds_per_token(self) -> float | None:
        """CPU time of the gateway."""
        return self.load.gateway_seconds / self.tokens if self.tokens else None


@dataclass(frozen=True)
class RequestFigures:
    """Requests with answers of one length. Each connection sends one request after the other."""

    engine: str
    streamed: bool
    tokens: int
    """Length of each answer."""
    load: Load
    requests: int

    @property
    def seconds_per_request(self) -> float:
        """CPU time of the gateway."""
        return self.load.gateway_seconds / self.requests if self.requests else float("nan")

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.load.seconds


@dataclass(frozen=True)
class RushFigures:
    """Requests sent at the same time. Refused requests were sent again after their Retry-After."""

    room: int
    """Number of choices that the engine accepts, to run or to wait."""
    times: int
    """The number of requests is this multiple of `room`."""
    served: int
    alike: bool
    """Whether all served requests got the same answer, as they should."""
    refusal_latencies: Sequence[float]
    """Latencies of refusals because the engine was full."""
    turned_away_latencies: Sequence[float]
    """Latencies of refusals because of server.max_connections."""
    cut: int
    """Number of connections that the gateway closed without an answer."""
    client_lateness: Sequence[float]
    """How late the load client's own event loop was. All latencies that it measured include this."""
    health_latencies: Sequence[float]
    """Latencies of /health while the engine was full."""


@dataclass(frozen=True)
class Line:
    """CPU time of a request: `per_request + per_token * tokens`, fitted by least squares."""

    engine: str
    streamed: bool
    per_request: float
    per_token: float


def fit(figures: Sequence[RequestFigures]) -> list[Line]:
    """Fits one line for each engine and kind of answer that was measured with several lengths."""
    groups: dict[tuple[str, bool], list[RequestFigures]] = {}
    for row in figures:
        groups.setdefault((row.engine, row.streamed), []).append(row)
    lines = []
    for (engine, streamed), rows in groups.items():
        lengths = [row.tokens for row in rows]
        if len(set(lengths)) > 1:
            slope, intercept = statistics.linear_regression(
                lengths, [row.seconds_per_request for row in rows]
            )
            lines.append(Line(engine, streamed, intercept, slope))
    return lines


def stream_table(figures: Sequence[StreamFigures]) -> str:
    """A table in Markdown."""
    head = (
        "engine", "streams", "step, ms", "tok/s", "gateway, us per token", "gateway, cores", "client, cores",
        "/health p50, ms", "p99, ms", "probes", "RSS before, MiB", "during", "after",
    )  # fmt: skip
    return _table(head, [_stream_row(row) for row in figures])


def request_table(figures: Sequence[RequestFigures]) -> str:
    """A table in Markdown."""
    head = ("engine", "answer", "tokens", "requests/s", "gateway, us per request", "gateway, cores")
    rows = [
        (
            row.engine,
            _answer(row.streamed),
            str(row.tokens),
            f"{row.requests_per_second:.0f}",
            _microseconds(row.seconds_per_request),
            f"{row.load.gateway_cores:.2f}",
        )
        for row in figures
    ]
    return _table(head, rows)


def rush_table(figures: Sequence[RushFigures]) -> str:
    """A table in Markdown."""
    head = (
        "slots", "requests", "served", "same answer", "engine full", "refused after p50, ms", "p99, ms",
        "no connection", "refused after p50, ms", "p99, ms", "closed", "client late by p99, ms", "max, ms",
        "/health p50, ms", "p99, ms", "probes",
    )  # fmt: skip
    return _table(head, [_rush_row(row) for row in figures])


def line_table(lines: Sequence[Line]) -> str:
    """A table in Markdown."""
    head = ("engine", "answer", "us per request", "us per token")
    rows = [
        (line.engine, _answer(line.streamed), _microseconds(line.per_request), _microseconds(line.per_token))
        for line in lines
    ]
    return _table(head, rows)


def to_json(
    streams: Sequence[StreamFigures], requests: Sequence[RequestFigures], conditions: dict[str, Any]
) -> str:
    """A JSON object with `conditions` and all figures."""
    content = {
        **conditions,
        "streams": [
            asdict(row)
            | {"seconds_per_token": row.seconds_per_token, "tokens_per_second": row.tokens_per_second}
            for row in streams
        ],
        "requests": [asdict(row) | {"seconds_per_request": row.seconds_per_request} for row in requests],
        "lines": [asdict(line) for line in fit(requests)],
    }
    return json.dumps(content, indent=2) + "\n"


def _stream_row(row: StreamFigures) -> tuple[str, ...]:
    return (
        row.engine,
        str(row.point.streams),
        f"{row.point.step_seconds * 1e3:g}",
        f"{row.tokens_per_second:.0f}",
        _microseconds(row.seconds_per_token),
        f"{row.load.gateway_cores:.2f}",
        f"{row.load.client_cores:.2f}",
        _milliseconds(percentile(row.health_latencies, 50)),
        _milliseconds(percentile(row.health_latencies, 99)),
        str(len(row.health_latencies)),
        *(f"{rss / MIB:.1f}" for rss in (row.rss_before, row.rss_during, row.rss_after)),
    )


def _rush_row(row: RushFigures) -> tuple[str, ...]:
    return (
        str(row.room),
        str(row.room * row.times),
        str(row.served),
        "yes" if row.alike else "no",
        *_summary(row.refusal_latencies),
        *_summary(row.turned_away_latencies),
        str(row.cut),
        _milliseconds(percentile(row.client_lateness, 99)),
        _milliseconds(percentile(row.client_lateness, 100)),
        _milliseconds(percentile(row.health_latencies, 50)),
        _milliseconds(percentile(row.health_latencies, 99)),
        str(len(row.health_latencies)),
    )


def _summary(latencies: Sequence[float]) -> tuple[str, str, str]:
    """Number, p50 and p99."""
    p50, p99 = (_milliseconds(percentile(latencies, rank)) for rank in (50, 99))
    return str(len(latencies)), p50, p99


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _answer(streamed: bool) -> str:
    return "streamed" if streamed else "whole"


def _microseconds(seconds: float | None) -> str:
    return NO_VALUE if seconds is None else f"{seconds * 1e6:.0f}"


def _milliseconds(seconds: float | None) -> str:
    return NO_VALUE if seconds is None else f"{seconds * 1e3:.1f}"

"""What was measured of the gateway, and tables of it. Pure. Times are in seconds."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.bench.figures import percentile
from app.bench.report import NONE
from benchmarks.resources import MIB


@dataclass(frozen=True)
class Point:
    """So many streams held open, all of which get a token in each step."""

    streams: int
    step_seconds: float
    """From one step of the engine to the next; 0: as fast as the clients get the tokens."""

    def __str__(self) -> str:
        every = f"every {self.step_seconds * 1e3:g} ms" if self.step_seconds else "as fast as can be"
        return f"{self.streams} streams, a step {every}"


@dataclass(frozen=True)
class Load:
    """What a stretch of time brought, and what it cost."""

    seconds: float
    gateway_seconds: float
    """Processor time of the gateway's process, the kernel's part included."""
    client_seconds: float
    """That of the load client's."""

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
    """That reached their clients, all streams together."""
    health_latencies: Sequence[float]
    """Of /health, asked while the streams went on; the load is from before."""
    rss_before: int
    """Of the gateway, in bytes, before there were any streams."""
    rss_during: int
    rss_after: int
    """When all streams had ended."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.load.seconds

    @property
    def seconds_per_token(self) -> float | None:
        """Processor time."""
        return self.load.gateway_seconds / self.tokens if self.tokens else None


@dataclass(frozen=True)
class RequestFigures:
    """Requests with answers of one length, one after the other on each of some connections."""

    engine: str
    streamed: bool
    tokens: int
    """Of each answer."""
    load: Load
    requests: int

    @property
    def seconds_per_request(self) -> float:
        """Processor time."""
        return self.load.gateway_seconds / self.requests if self.requests else float("nan")

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.load.seconds


@dataclass(frozen=True)
class RushFigures:
    """Requests that came at the same time, and again when they were told to."""

    room: int
    """Choices that the engine runs or lets wait."""
    times: int
    """As many requests."""
    served: int
    alike: bool
    """All that were served got the same answer, as they should."""
    refusal_latencies: Sequence[float]
    """Of those that found no room."""
    turned_away_latencies: Sequence[float]
    """Of those that found no connection: server.max_connections."""
    cut: int
    """Connections beyond even those, which ended without a word."""
    client_lateness: Sequence[float]
    """By how much the load client itself was late. It shares the machine, and its latencies hold this."""
    health_latencies: Sequence[float]
    """Of /health, asked while there was no room."""


@dataclass(frozen=True)
class Line:
    """Processor time of a request: `per_request + per_token * tokens`, by least squares."""

    engine: str
    streamed: bool
    per_request: float
    per_token: float


def fit(figures: Sequence[RequestFigures]) -> list[Line]:
    """One line for each engine and way to answer, where more than one length was measured."""
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
    """In Markdown."""
    head = (
        "engine", "streams", "step, ms", "tok/s", "gateway, us per token", "gateway, cores", "client, cores",
        "/health p50, ms", "p99, ms", "times asked", "RSS before, MiB", "during", "after",
    )  # fmt: skip
    return _table(head, [_stream_row(row) for row in figures])


def request_table(figures: Sequence[RequestFigures]) -> str:
    """In Markdown."""
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
    """In Markdown."""
    head = (
        "places", "requests", "served", "answers alike", "no place", "told after p50, ms", "p99, ms",
        "no connection", "told after p50, ms", "p99, ms", "cut", "client late by p99, ms", "at most, ms",
        "/health p50, ms", "p99, ms", "times asked",
    )  # fmt: skip
    return _table(head, [_rush_row(row) for row in figures])


def line_table(lines: Sequence[Line]) -> str:
    """In Markdown."""
    head = ("engine", "answer", "us per request", "and us per token")
    rows = [
        (line.engine, _answer(line.streamed), _microseconds(line.per_request), _microseconds(line.per_token))
        for line in lines
    ]
    return _table(head, rows)


def to_json(
    streams: Sequence[StreamFigures], requests: Sequence[RequestFigures], conditions: dict[str, Any]
) -> str:
    """All figures, and `conditions` beside them."""
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
        *_told(row.refusal_latencies),
        *_told(row.turned_away_latencies),
        str(row.cut),
        _milliseconds(percentile(row.client_lateness, 99)),
        _milliseconds(percentile(row.client_lateness, 100)),
        _milliseconds(percentile(row.health_latencies, 50)),
        _milliseconds(percentile(row.health_latencies, 99)),
        str(len(row.health_latencies)),
    )


def _told(latencies: Sequence[float]) -> tuple[str, str, str]:
    p50, p99 = (_milliseconds(percentile(latencies, rank)) for rank in (50, 99))
    return str(len(latencies)), p50, p99


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _answer(streamed: bool) -> str:
    return "streamed" if streamed else "whole"


def _microseconds(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds * 1e6:.0f}"


def _milliseconds(seconds: float | None) -> str:
    return NONE if seconds is None else f"{seconds * 1e3:.1f}"

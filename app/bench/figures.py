"""Computes figures from the records of requests. Pure: no clock, no I/O."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.bench.records import Record


@dataclass(frozen=True)
class Point:
    """A combination of prompt length and concurrency. Every server is measured at each point."""

    prompt_tokens: int
    """Target length of the whole prompt, including the chat template."""
    concurrency: int
    """Number of concurrent streams."""


@dataclass(frozen=True)
class Measurement:
    """All requests to one server at one point in one round."""

    server: str
    point: Point
    records: tuple[Record, ...]
    seconds: float
    """Time from the first request to the end of the last answer."""
    client_seconds: float
    """CPU time that the load client itself used in this time."""

    @property
    def output_tokens(self) -> int:
        """Completion tokens of all requests that did not fail."""
        return sum(record.completion_tokens for record in self.records if record.error is None)

    @property
    def output_tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds


@dataclass(frozen=True)
class Figures:
    """The figures of one server at one point, over all rounds. Times are in seconds.

    A field is None if all requests failed.
    """

    server: str
    point: Point
    requests: int
    failed: int
    error: str | None
    """The error of the first request that failed."""
    wrong_lengths: int
    """Answers with another number of tokens than requested. They make the figures incomparable."""
    prompt_tokens_p50: float | None
    """Median prompt length, as the server counts it."""
    output_tokens: int
    output_tokens_per_second: float
    output_tokens_per_second_by_round: tuple[float, ...]
    time_to_first_token_p50: float | None
    time_to_first_token_p99: float | None
    inter_token_latency_p50: float | None
    inter_token_latency_p99: float | None
    tokens_per_chunk: float | None
    """Above 1 if the server sends several tokens in a chunk. Latencies are then those between chunks."""
    client_cores: float
    """Average number of cores that the load client itself kept busy."""


def summarize(measurements: Iterable[Measurement], tokens: int) -> list[Figures]:
    """Returns the figures for each server and point, in the order of their first measurements.

    `tokens`: the requested length of each answer.
    """
    groups: dict[tuple[str, Point], list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault((measurement.server, measurement.point), []).append(measurement)
    return [_summarize(server, point, rounds, tokens) for (server, point), rounds in groups.items()]


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The percentile, linearly interpolated between the two nearest values. None if there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def _summarize(server: str, point: Point, rounds: list[Measurement], tokens: int) -> Figures:
    records = [record for measurement in rounds for record in measurement.records]
    answered = [record for record in records if record.error is None]
    firsts = [record.time_to_first_token for record in answered]
    latencies = [latency for record in answered for latency in record.inter_token_latencies]
    seconds = sum(measurement.seconds for measurement in rounds)
    output_tokens = sum(measurement.output_tokens for measurement in rounds)
    chunks = sum(len(record.arrivals) for record in answered)
    return Figures(
        server=server,
        point=point,
        requests=len(records),
        failed=len(records) - len(answered),
        error=next((record.error for record in records if record.error is not None), None),
        wrong_lengths=sum(record.completion_tokens != tokens for record in answered),
        prompt_tokens_p50=percentile([record.prompt_tokens for record in answered], 50),
        output_tokens=output_tokens,
        output_tokens_per_second=output_tokens / seconds,
        output_tokens_per_second_by_round=tuple(
            measurement.output_tokens_per_second for measurement in rounds
        ),
        time_to_first_token_p50=percentile(firsts, 50),
        time_to_first_token_p99=percentile(firsts, 99),
        inter_token_latency_p50=percentile(latencies, 50),
        inter_token_latency_p99=percentile(latencies, 99),
        tokens_per_chunk=output_tokens / chunks if chunks else None,
        client_cores=sum(measurement.client_seconds for measurement in rounds) / seconds,
    )

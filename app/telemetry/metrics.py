"""What GET /metrics reports. Counts what it is told, and asks the workers; knows no requests."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from app.schemas.concepts import ConceptState
from app.telemetry.observation import INTERVAL_SECONDS, Observation, TokenIntervals, WorkerState
from inference.interface.protocol import EngineStats

_WAIT_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 300)
_TOKEN_SECONDS = (0.005, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_ANSWER_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 300, 600)


class Metrics:
    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._info = Info("tiller", "What is served.", registry=registry)
        self._requests = Counter(
            "tiller_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._prompt_tokens = Counter(
            "tiller_prompt_tokens", "Tokens in the prompts of ended generations.", registry=registry
        )
        self._completion_tokens = Counter(
            "tiller_completion_tokens", "Tokens generated, in generations that have ended.", registry=registry
        )
        self._aborts = Counter(
            "tiller_aborts", "Generations whose client left, or which failed.", registry=registry
        )
        self._steered = Counter(
            "tiller_steered",
            "Generations that were steered, by how many concepts.",
            ["concepts"],
            registry=registry,
        )
        self._queue_time = Histogram(
            "tiller_queue_time_seconds",
            "How long a generation waited for the engine to begin with it.",
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self._first_token = Histogram(
            "tiller_time_to_first_token_seconds",
            "From a chat's arrival to its first token.",
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self._per_token = Histogram(
            "tiller_time_per_output_token_seconds",
            "Mean time between the tokens of a choice, one value for each generation.",
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "tiller_generation_seconds",
            "From a chat's arrival to the end of its answer.",
            buckets=_ANSWER_SECONDS,
            registry=registry,
        )
        self._trainings = Counter(
            "tiller_trainings",
            "Trainings of steering concepts that have ended, by what the concept is then.",
            ["state"],
            registry=registry,
        )
        self.concepts = Gauge("tiller_concepts", "Known steering concepts.", registry=registry)
        self.running = Gauge("tiller_running", "Generations that are running.", registry=registry)

    def describe(self, **facts: str) -> None:
        """Of what is served: its version, its model."""
        self._info.info(facts)

    def watch(self, workers: Callable[[], Sequence[WorkerState]]) -> None:
        """From now on the workers are asked with every report."""
        self._registry.register(_WorkerCollector(workers))

    def count_request(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def count_first_token(self, seen: Observation) -> None:
        if seen.first_token_seconds is not None:
            self._first_token.observe(seen.first_token_seconds)
        if seen.queue_seconds is not None:
            self._queue_time.observe(seen.queue_seconds)

    def count_generation(self, seen: Observation) -> None:
        """One that has ended, whether by itself or because the client left or something failed."""
        if seen.usage is None or seen.asked is None:
            return
        self._prompt_tokens.inc(seen.usage.prompt_tokens)
        self._completion_tokens.inc(seen.usage.completion_tokens)
        self._aborts.inc(not seen.ended)
        if seen.concepts:
            self._steered.labels(str(seen.concepts)).inc()
        seen.end()
        choices, tokens = seen.asked.n, seen.usage.completion_tokens
        if seen.first_token_seconds is not None and tokens > choices:
            self._per_token.observe((seen.seconds - seen.first_token_seconds) * choices / (tokens - choices))
        if seen.ended:
            self._whole.observe(seen.seconds)

    def count_training(self, state: ConceptState) -> None:
        self._trainings.labels(state.value).inc()

    def render(self) -> bytes:
        return generate_latest(self._registry)


_Gauge = tuple[str, str, Callable[[WorkerState], float]]
_GAUGES: tuple[_Gauge, ...] = (
    ("tiller_worker_up", "1 while the worker serves, else 0.", lambda worker: worker.up),
    (
        "tiller_sequences_running",
        "Choices and probes in the batch.",
        lambda worker: worker.stats.running,
    ),
    (
        "tiller_sequences_waiting",
        "Choices and probes in the queue.",
        lambda worker: worker.stats.waiting,
    ),
    (
        "tiller_kv_cache_usage_ratio",
        "Of the KV cache's blocks, in use.",
        lambda worker: _usage(worker.stats),
    ),
)
_COUNTERS: tuple[_Gauge, ...] = (
    ("tiller_worker_restarts", "Times that the worker was started again.", lambda worker: worker.restarts),
    ("tiller_preemptions", "Sequences that lost their blocks.", lambda worker: worker.stats.preemptions),
    (
        "tiller_prefix_cache_queries",
        "Tokens looked up in the KV cache.",
        lambda worker: worker.stats.prefix_cache_queries,
    ),
    (
        "tiller_prefix_cache_hits",
        "Tokens found there, which are not computed.",
        lambda worker: worker.stats.prefix_cache_hits,
    ),
)


class _WorkerCollector(Collector):
    """The workers' numbers, as they were lately. Each has its own: a sum would fall when one starts again."""

    def __init__(self, workers: Callable[[], Sequence[WorkerState]]) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        workers = list(enumerate(self._workers()))
        for name, meaning, read in _GAUGES:
            gauge = GaugeMetricFamily(name, meaning, labels=["worker"])
            for number, worker in workers:
                gauge.add_metric([str(number)], read(worker))
            yield gauge
        for name, meaning, read in _COUNTERS:
            counter = CounterMetricFamily(name, meaning, labels=["worker"])
            for number, worker in workers:
                counter.add_metric([str(number)], read(worker))
            yield counter
        yield from _processes(workers)
        intervals = HistogramMetricFamily(
            "tiller_inter_token_latency_seconds", "Between two tokens of a choice.", labels=["worker"]
        )
        for number, worker in workers:
            intervals.add_metric([str(number)], _buckets(worker.intervals), worker.intervals.seconds)
        yield intervals


def _processes(workers: Iterable[tuple[int, WorkerState]]) -> Iterable[Metric]:
    """Memory, processor time and the like of the workers' processes, where the system tells."""
    families: dict[str, Metric] = {}
    for number, worker in workers:
        if worker.pid is None:
            continue
        of_one = ProcessCollector("tiller_worker", pid=partial(int, worker.pid), registry=None)
        for metric in of_one.collect():
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, {"worker": str(number)}, sample.value)
    return families.values()


def _usage(stats: EngineStats) -> float:
    return stats.blocks_in_use / stats.blocks if stats.blocks else 0.0


def _buckets(intervals: TokenIntervals) -> list[tuple[str, float]]:
    return list(zip((*map(str, INTERVAL_SECONDS), "+Inf"), intervals.cumulative, strict=True))

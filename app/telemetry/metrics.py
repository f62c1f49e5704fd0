"""The metrics of GET /metrics: counts observations and reads the workers' state. Knows no HTTP.

Whatever belongs to one model has the label `model`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
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
        self._info = Gauge(
            "tiller_info",
            "1 for each model that the server serves, with the server's version and the model's dtype.",
            ["version", "model", "dtype"],
            registry=registry,
        )
        self._requests = Counter(
            "tiller_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._prompt_tokens = Counter(
            "tiller_prompt_tokens",
            "Prompt tokens of generations that have ended.",
            ["model"],
            registry=registry,
        )
        self._completion_tokens = Counter(
            "tiller_completion_tokens",
            "Completion tokens of generations that have ended.",
            ["model"],
            registry=registry,
        )
        self._aborts = Counter(
            "tiller_aborts",
            "Generations that failed or whose client disconnected.",
            ["model"],
            registry=registry,
        )
        self._steered = Counter(
            "tiller_steered",
            "Steered generations, by the number of their concepts.",
            ["concepts", "model"],
            registry=registry,
        )
        self._queue_time = Histogram(
            "tiller_queue_time_seconds",
            "Time in the engine's queue until the first choice of a generation starts.",
            ["model"],
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self._first_token = Histogram(
            "tiller_time_to_first_token_seconds",
            "TTFT: time from a chat's arrival to its first token.",
            ["model"],
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self._per_token = Histogram(
            "tiller_time_per_output_token_seconds",
            "Mean time between the tokens of a choice, one value for each generation.",
            ["model"],
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "tiller_generation_seconds",
            "Time from a chat's arrival to the end of its answer.",
            ["model"],
            buckets=_ANSWER_SECONDS,
            registry=registry,
        )
        self._trainings = Counter(
            "tiller_trainings",
            "Trainings of steering concepts that have ended, by the concept's new state.",
            ["state", "model"],
            registry=registry,
        )
        self.concepts = Gauge("tiller_concepts", "Known steering concepts.", registry=registry)
        self._running = Gauge(
            "tiller_running",
            "Generations in progress: those with a first token, and open streams that wait for theirs.",
            ["model"],
            registry=registry,
        )

    def describe(self, version: str, model: str, dtype: str) -> None:
        """Adds a model to tiller_info. Its counters begin with 0."""
        self._info.labels(version, model, dtype).set(1)
        for metric in (
            *(self._prompt_tokens, self._completion_tokens, self._aborts, self._running),
            *(self._queue_time, self._first_token, self._per_token, self._whole),
        ):
            metric.labels(model)

    def watch(self, workers: Callable[[], Mapping[str, Sequence[WorkerState]]]) -> None:
        """Adds the workers' metrics. Each `render` reads them from `workers`, by the model's name."""
        self._registry.register(_WorkerCollector(workers))

    def running(self, model: str) -> AbstractContextManager[None]:
        """Counts a generation as being in progress while the context is open."""
        return self._running.labels(model).track_inprogress()

    def count_request(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def count_first_token(self, seen: Observation) -> None:
        if seen.first_token_seconds is not None:
            self._first_token.labels(seen.model).observe(seen.first_token_seconds)
        if seen.queue_seconds is not None:
            self._queue_time.labels(seen.model).observe(seen.queue_seconds)

    def count_generation(self, seen: Observation) -> None:
        """Counts a generation that has ended, has failed or was aborted."""
        if seen.usage is None or seen.generation_request is None:
            return
        self._prompt_tokens.labels(seen.model).inc(seen.usage.prompt_tokens)
        self._completion_tokens.labels(seen.model).inc(seen.usage.completion_tokens)
        self._aborts.labels(seen.model).inc(not seen.is_complete)
        if seen.concepts:
            self._steered.labels(str(seen.concepts), seen.model).inc()
        seen.mark_ended()
        choices, tokens = seen.generation_request.n, seen.usage.completion_tokens
        if seen.first_token_seconds is not None and tokens > choices:
            seconds = (seen.seconds - seen.first_token_seconds) * choices / (tokens - choices)
            self._per_token.labels(seen.model).observe(seconds)
        if seen.is_complete:
            self._whole.labels(seen.model).observe(seen.seconds)

    def count_training(self, state: ConceptState, model: str) -> None:
        self._trainings.labels(state.value, model).inc()

    def render(self) -> bytes:
        return generate_latest(self._registry)


_Gauge = tuple[str, str, Callable[[WorkerState], float]]
_GAUGES: tuple[_Gauge, ...] = (
    ("tiller_worker_up", "1 if the worker serves requests, else 0.", lambda worker: worker.up),
    (
        "tiller_sequences_running",
        "Sequences in the running batch: choices and training texts.",
        lambda worker: worker.stats.running,
    ),
    (
        "tiller_sequences_waiting",
        "Sequences in the queue: choices and training texts.",
        lambda worker: worker.stats.waiting,
    ),
    (
        "tiller_kv_cache_usage_ratio",
        "KV cache usage: share of the blocks that are in use, 0 to 1.",
        lambda worker: _usage(worker.stats),
    ),
)
_COUNTERS: tuple[_Gauge, ...] = (
    ("tiller_worker_restarts", "How often the worker was restarted.", lambda worker: worker.restarts),
    (
        "tiller_preemptions",
        "Preempted sequences, which are computed again.",
        lambda worker: worker.stats.preemptions,
    ),
    (
        "tiller_prefix_cache_queries",
        "Tokens looked up in the prefix cache.",
        lambda worker: worker.stats.prefix_cache_queries,
    ),
    (
        "tiller_prefix_cache_hits",
        "Prefix cache hits: tokens found there, which are not computed again.",
        lambda worker: worker.stats.prefix_cache_hits,
    ),
)


_LABELS = ("worker", "model")


class _WorkerCollector(Collector):
    """The latest numbers of each worker. There is no sum over workers: it would drop when one restarts."""

    def __init__(self, workers: Callable[[], Mapping[str, Sequence[WorkerState]]]) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        workers = [
            ([str(number), model], worker)
            for model, states in self._workers().items()
            for number, worker in enumerate(states)
        ]
        for name, help_text, read in _GAUGES:
            gauge = GaugeMetricFamily(name, help_text, labels=_LABELS)
            for labels, worker in workers:
                gauge.add_metric(labels, read(worker))
            yield gauge
        for name, help_text, read in _COUNTERS:
            counter = CounterMetricFamily(name, help_text, labels=_LABELS)
            for labels, worker in workers:
                counter.add_metric(labels, read(worker))
            yield counter
        yield from _processes(workers)
        intervals = HistogramMetricFamily(
            "tiller_inter_token_latency_seconds", "Time between two tokens of a choice.", labels=_LABELS
        )
        for labels, worker in workers:
            intervals.add_metric(labels, _buckets(worker.intervals), worker.intervals.seconds)
        yield intervals


def _processes(workers: Iterable[tuple[list[str], WorkerState]]) -> Iterable[Metric]:
    """Memory, CPU time and the like of the workers' processes, if the system reports them."""
    families: dict[str, Metric] = {}
    for labels, worker in workers:
        if worker.pid is None:
            continue
        process = ProcessCollector("tiller_worker", pid=partial(int, worker.pid), registry=None)
        for metric in process.collect():
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, dict(zip(_LABELS, labels, strict=True)), sample.value)
    return families.values()


def _usage(stats: EngineStats) -> float:
    return stats.blocks_in_use / stats.blocks if stats.blocks else 0.0


def _buckets(intervals: TokenIntervals) -> list[tuple[str, float]]:
    return list(zip((*map(str, INTERVAL_SECONDS), "+Inf"), intervals.cumulative, strict=True))

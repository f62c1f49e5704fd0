"""The metrics of GET /metrics: counts observations and reads the workers' state. Knows no HTTP."""

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
        self._info = Info("tiller", "Version, model and dtype that the server serves.", registry=registry)
        self._requests = Counter(
            "tiller_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self._prompt_tokens = Counter(
            "tiller_prompt_tokens", "Prompt tokens of generations that have ended.", registry=registry
        )
        self._completion_tokens = Counter(
            "tiller_completion_tokens", "Completion tokens of generations that have ended.", registry=registry
        )
        self._aborts = Counter(
            "tiller_aborts", "Generations that failed or whose client disconnected.", registry=registry
        )
        self._steered = Counter(
            "tiller_steered",
            "Steered generations, by the number of their concepts.",
            ["concepts"],
            registry=registry,
        )
        self._queue_time = Histogram(
            "tiller_queue_time_seconds",
            "Time in the engine's queue until the first choice of a generation starts.",
            buckets=_WAIT_SECONDS,
            registry=registry,
        )
        self._first_token = Histogram(
            "tiller_time_to_first_token_seconds",
            "TTFT: time from a chat's arrival to its first token.",
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
            "Time from a chat's arrival to the end of its answer.",
            buckets=_ANSWER_SECONDS,
            registry=registry,
        )
        self._trainings = Counter(
            "tiller_trainings",
            "Trainings of steering concepts that have ended, by the concept's new state.",
            ["state"],
            registry=registry,
        )
        self.concepts = Gauge("tiller_concepts", "Known steering concepts.", registry=registry)
        self.running = Gauge(
            "tiller_running",
            "Generations in progress: those with a first token, and open streams that wait for theirs.",
            registry=registry,
        )

    def describe(self, **facts: str) -> None:
        """Sets the labels of tiller_info, such as the version and the model."""
        self._info.info(facts)

    def watch(self, workers: Callable[[], Sequence[WorkerState]]) -> None:
        """Adds the workers' metrics. Each `render` reads them from `workers`."""
        self._registry.register(_WorkerCollector(workers))

    def count_request(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def count_first_token(self, seen: Observation) -> None:
        if seen.first_token_seconds is not None:
            self._first_token.observe(seen.first_token_seconds)
        if seen.queue_seconds is not None:
            self._queue_time.observe(seen.queue_seconds)

    def count_generation(self, seen: Observation) -> None:
        """Counts a generation that has ended, has failed or was aborted."""
        if seen.usage is None or seen.generation_request is None:
            return
        self._prompt_tokens.inc(seen.usage.prompt_tokens)
        self._completion_tokens.inc(seen.usage.completion_tokens)
        self._aborts.inc(not seen.is_complete)
        if seen.concepts:
            self._steered.labels(str(seen.concepts)).inc()
        seen.mark_ended()
        choices, tokens = seen.generation_request.n, seen.usage.completion_tokens
        if seen.first_token_seconds is not None and tokens > choices:
            self._per_token.observe((seen.seconds - seen.first_token_seconds) * choices / (tokens - choices))
        if seen.is_complete:
            self._whole.observe(seen.seconds)

    def count_training(self, state: ConceptState) -> None:
        self._trainings.labels(state.value).inc()

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


class _WorkerCollector(Collector):
    """The latest numbers of each worker. There is no sum over workers: it would drop when one restarts."""

    def __init__(self, workers: Callable[[], Sequence[WorkerState]]) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        workers = list(enumerate(self._workers()))
        for name, help_text, read in _GAUGES:
            gauge = GaugeMetricFamily(name, help_text, labels=["worker"])
            for number, worker in workers:
                gauge.add_metric([str(number)], read(worker))
            yield gauge
        for name, help_text, read in _COUNTERS:
            counter = CounterMetricFamily(name, help_text, labels=["worker"])
            for number, worker in workers:
                counter.add_metric([str(number)], read(worker))
            yield counter
        yield from _processes(workers)
        intervals = HistogramMetricFamily(
            "tiller_inter_token_latency_seconds", "Time between two tokens of a choice.", labels=["worker"]
        )
        for number, worker in workers:
            intervals.add_metric([str(number)], _buckets(worker.intervals), worker.intervals.seconds)
        yield intervals


def _processes(workers: Iterable[tuple[int, WorkerState]]) -> Iterable[Metric]:
    """Memory, CPU time and the like of the workers' processes, if the system reports them."""
    families: dict[str, Metric] = {}
    for number, worker in workers:
        if worker.pid is None:
            continue
        process = ProcessCollector("tiller_worker", pid=partial(int, worker.pid), registry=None)
        for metric in process.collect():
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                family.add_sample(sample.name, {"worker": str(number)}, sample.value)
    return families.values()


def _usage(stats: EngineStats) -> float:
    return stats.blocks_in_use / stats.blocks if stats.blocks else 0.0


def _buckets(intervals: TokenIntervals) -> list[tuple[str, float]]:
    return list(zip((*map(str, INTERVAL_SECONDS), "+Inf"), intervals.cumulative, strict=True))

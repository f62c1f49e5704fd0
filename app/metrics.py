"""What GET /metrics reports. Counts what it is told, and asks the engine; knows no requests."""

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from app.schemas.completions import Usage
from app.schemas.concepts import ConceptState
from inference.protocol import EngineStats

_FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 300)
_TOKEN_SECONDS = (0.005, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_ANSWER_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 300, 600)


class Timing:
    """Of one request, from its arrival on."""

    def __init__(self) -> None:
        self._arrived = time.perf_counter()
        self._first: float | None = None

    def token(self) -> None:
        """A step has brought something."""
        if self._first is None:
            self._first = time.perf_counter()

    @property
    def seconds_to_first(self) -> float | None:
        """None while there is none."""
        return None if self._first is None else self._first - self._arrived

    def seconds(self) -> float:
        """Until now."""
        return time.perf_counter() - self._arrived


class Metrics:
    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
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
        self._steered = Counter("tiller_steered", "Generations that were steered.", registry=registry)
        self._first_token = Histogram(
            "tiller_time_to_first_token_seconds",
            "From a chat's arrival to its first token.",
            buckets=_FIRST_TOKEN_SECONDS,
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

    def watch(self, stats: Callable[[], EngineStats]) -> None:
        """From now on the engine is asked with every report."""
        self._registry.register(_EngineCollector(stats))

    def count_request(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def count_generation(
        self, usage: Usage, timing: Timing, *, choices: int, steered: bool, ended: bool
    ) -> None:
        """`ended`: by itself, and not because the client left or something failed."""
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._completion_tokens.inc(usage.completion_tokens)
        self._steered.inc(steered)
        self._aborts.inc(not ended)
        first, whole = timing.seconds_to_first, timing.seconds()
        if first is not None:
            self._first_token.observe(first)
            if usage.completion_tokens > choices:
                self._per_token.observe((whole - first) * choices / (usage.completion_tokens - choices))
        if ended:
            self._whole.observe(whole)

    def count_training(self, state: ConceptState) -> None:
        self._trainings.labels(state.value).inc()

    def render(self) -> bytes:
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """The engine's numbers, as they were lately."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        usage = stats.blocks_in_use / stats.blocks if stats.blocks else 0.0
        yield GaugeMetricFamily("tiller_sequences_running", "Choices and probes in the batch.", stats.running)
        yield GaugeMetricFamily("tiller_sequences_waiting", "Choices and probes in the queue.", stats.waiting)
        yield GaugeMetricFamily("tiller_kv_cache_usage_ratio", "Of the KV cache's blocks, in use.", usage)
        yield CounterMetricFamily(
            "tiller_preemptions", "Sequences that lost their blocks.", stats.preemptions
        )
        yield CounterMetricFamily(
            "tiller_prefix_cache_queries", "Tokens looked up in the KV cache.", stats.looked_up_tokens
        )
        yield CounterMetricFamily(
            "tiller_prefix_cache_hits", "Tokens found there, which are not computed.", stats.found_tokens
        )

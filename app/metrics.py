"""What GET /metrics reports. Counts what it is told; knows no requests."""

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from app.schemas.completions import Usage
from app.schemas.concepts import ConceptState


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tiller_requests", "Requests answered.", ["route", "status"], registry=self._registry
        )
        self._prompt_tokens = Counter(
            "tiller_prompt_tokens", "Tokens in the prompts of ended generations.", registry=self._registry
        )
        self._completion_tokens = Counter(
            "tiller_completion_tokens",
            "Tokens generated, in generations that have ended.",
            registry=self._registry,
        )
        self._trainings = Counter(
            "tiller_trainings",
            "Trainings of steering concepts that have ended, by what the concept is then.",
            ["state"],
            registry=self._registry,
        )
        self.concepts = Gauge("tiller_concepts", "Known steering concepts.", registry=self._registry)
        self.running = Gauge("tiller_running", "Generations that are running.", registry=self._registry)

    def count_request(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def count_tokens(self, usage: Usage) -> None:
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._completion_tokens.inc(usage.completion_tokens)

    def count_training(self, state: ConceptState) -> None:
        self._trainings.labels(state.value).inc()

    def render(self) -> bytes:
        return generate_latest(self._registry)

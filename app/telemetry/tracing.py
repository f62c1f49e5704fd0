"""Exports each request as an OpenTelemetry span. Imports the SDK only if the operator enables tracing.

Creates the span from the Observation after the answer, so tracing costs nothing per token. Attribute names
follow OpenTelemetry's semantic conventions for HTTP and for generative AI.
"""

import importlib.util
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from app import __version__
from app.errors import StartError
from app.settings import TracingSettings
from app.telemetry.observation import PROBED_ROUTES, Observation

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_CLOSE_SECONDS = 2.0

Attributes = dict[str, str | int | float | bool | list[str]]


class Tracing:
    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("tiller", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def observe(self, seen: Observation) -> None:
        """Creates the request's span, as a child of the caller's span if there is one."""
        if seen.route in PROBED_ROUTES:
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode

        span = self._tracer.start_span(
            f"{seen.method} {seen.route}",
            context=self._propagator.extract(seen.trace_headers),
            kind=SpanKind.SERVER,
            attributes=self._attributes(seen),
            start_time=seen.arrived_ns,
        )
        seen.trace_id = f"{span.get_span_context().trace_id:032x}"
        if span.is_recording():
            for name, seconds in _events(seen).items():
                span.add_event(name, timestamp=seen.arrived_ns + int(seconds * 1e9))
            if seen.status is None or seen.status >= 500 or (seen.status == 200 and seen.error):
                span.set_status(Status(StatusCode.ERROR, seen.error))
        span.end(seen.arrived_ns + int(seen.seconds * 1e9))

    def close(self) -> None:
        """Exports the remaining spans, for at most two seconds. The SDK itself would try much longer."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(_CLOSE_SECONDS)

    def _attributes(self, seen: Observation) -> Attributes:
        attributes: dict[str, str | int | float | bool | list[str] | None] = {
            "http.request.method": seen.method,
            "http.route": seen.route,
            "http.response.status_code": seen.status,
            "error.type": seen.error,
            "tiller.request.id": seen.request_id,
            "tiller.token": seen.token,
            **self._chat_attributes(seen),
        }
        return {name: value for name, value in attributes.items() if value is not None}

    def _chat_attributes(self, seen: Observation) -> Mapping[str, str | int | float | list[str] | None]:
        if seen.generation_request is None:
            return {}
        sampling = seen.generation_request.sampling
        return {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "tiller",
            "gen_ai.request.model": seen.model,
            "gen_ai.request.max_tokens": seen.generation_request.max_tokens,
            "gen_ai.request.choice.count": seen.generation_request.n,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.top_k": sampling.top_k,
            "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
            "gen_ai.request.presence_penalty": sampling.presence_penalty,
            "gen_ai.response.id": "chatcmpl-" + seen.request_id,
            "gen_ai.response.model": seen.model,
            "gen_ai.response.finish_reasons": [reason or "error" for reason in seen.finish_reasons or ()],
            "gen_ai.response.time_to_first_chunk": seen.first_token_seconds,
            "gen_ai.usage.input_tokens": len(seen.generation_request.prompt_token_ids),
            "gen_ai.usage.output_tokens": seen.usage.completion_tokens if seen.usage else 0,
            "tiller.queue_seconds": seen.queue_seconds,
            "tiller.steering.concepts": seen.concepts,
        }


def start_tracing(settings: TracingSettings) -> Tracing | None:
    """Returns None if tracing is not enabled. Raises StartError if its packages are not installed."""
    if check_packages(settings) is None:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource({"service.name": "tiller", "service.version": __version__})
    resource = resource.merge(OTELResourceDetector().detect())
    provider = TracerProvider(shutdown_on_exit=False, resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.endpoint)))
    return Tracing(provider)


def check_packages(settings: TracingSettings) -> str | None:
    """The setting or environment variable that enables tracing, or None.

    Raises StartError if tracing is enabled and its packages are not installed.
    """
    enabled_by = _enabled_by(settings)
    if enabled_by and not _is_installed("opentelemetry.exporter.otlp.proto.http"):
        raise StartError(f"{enabled_by} is set, but tracing needs Tiller's extra otel: pip install '.[otel]'")
    return enabled_by


def _enabled_by(settings: TracingSettings) -> str | None:
    """The setting or environment variable that enables tracing, or None."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if settings.endpoint:
        return "tracing.endpoint"
    if os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return None
    return next((name for name in _ENDPOINTS if os.environ.get(name)), None)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing, too
        return False


def _events(seen: Observation) -> dict[str, float]:
    """Event names, with seconds from the request's arrival."""
    events = {
        "queued": seen.submit_seconds,
        "started": None,
        "first_token": seen.first_token_seconds,
    }
    if seen.submit_seconds is not None and seen.queue_seconds is not None:
        events["started"] = seen.submit_seconds + seen.queue_seconds
    return {name: seconds for name, seconds in events.items() if seconds is not None}

"""Tracing: one span for each request, named by OpenTelemetry's semantic conventions. It is off by default."""

import http.server
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes
from opentelemetry.trace import SpanKind, StatusCode

from app.errors import EngineUnavailable, StartError
from app.main import create_app
from app.settings import Settings, TracingSettings
from app.telemetry import tracing as subject
from app.telemetry.observation import Observation
from app.telemetry.tracing import Tracing, start_tracing
from inference.interface.requests import FinishReason
from tests.app.contract.conftest import client_of
from tests.app.contract.support import CHAT, body, steps, user
from tests.app.contract.test_disconnect import Reader, answering
from tests.app.fakes import FakeEngine, reply

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(autouse=True)
def _no_variables_of_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(spans: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield provider
    provider.shutdown()


@pytest.fixture
def observations() -> list[Observation]:
    """The observations that the access log would have received."""
    return []


@pytest.fixture
async def traced(
    engine: FakeEngine, provider: TracerProvider, observations: list[Observation], tmp_path: Any
) -> Any:
    settings = Settings(model={"name": "tiny"}, data_directory=str(tmp_path))
    observers: list[Callable[[Observation], None]] = [Tracing(provider).observe, observations.append]
    async with client_of(create_app(settings, {"tiny": engine}, observers)) as client:
        yield client


def only(spans: InMemorySpanExporter) -> ReadableSpan:
    [span] = spans.get_finished_spans()
    return span


async def test_a_chat_has_a_span_with_its_numbers(
    traced: httpx.AsyncClient,
    engine: FakeEngine,
    spans: InMemorySpanExporter,
    observations: list[Observation],
) -> None:
    engine.script = reply([10, 11, 12], FinishReason.LENGTH)
    answer = await traced.post(CHAT, json=body(n=2, max_tokens=3, temperature=0.5, top_k=7))
    span = only(spans)
    assert (span.name, span.kind) == ("POST /chat/completions", SpanKind.SERVER)
    assert span.parent is None
    found = dict(span.attributes or {})
    usage = answer.json()["usage"]
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_k": 7,
        "gen_ai.response.id": answer.json()["id"],
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "http.request.method": "POST",
        "http.route": "/chat/completions",
        "http.response.status_code": 200,
    }
    assert expected.items() <= found.items()
    known = {
        value
        for module in (gen_ai_attributes, http_attributes, error_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    assert {name for name in found if not name.startswith("tiller.")} <= known
    assert span.status.status_code is StatusCode.UNSET
    assert [event.name for event in span.events] == ["queued", "started", "first_token"]
    times = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
    assert times == sorted(times)
    assert observations[0].trace_id == f"{span.context.trace_id:032x}"


async def test_the_span_continues_the_callers_trace(
    traced: httpx.AsyncClient, spans: InMemorySpanExporter
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"}
    await traced.post(CHAT, json=body(), headers=headers)
    span = only(spans)
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert span.context.trace_state.get("a") == "b"


async def test_an_unsampled_callers_request_has_no_span(
    traced: httpx.AsyncClient, spans: InMemorySpanExporter, observations: list[Observation]
) -> None:
    await traced.post(CHAT, json=body(), headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert spans.get_finished_spans() == ()
    assert observations[0].trace_id == TRACE


@pytest.mark.parametrize("given", ["", "x", f"00-{TRACE}-{PARENT}", f"00-{'0' * 32}-{PARENT}-01", "\xff"])
async def test_an_invalid_traceparent_starts_a_new_trace(
    traced: httpx.AsyncClient, spans: InMemorySpanExporter, given: str
) -> None:
    answer = await traced.get("/version", headers={"traceparent": given.encode("latin-1")})
    assert answer.status_code == 200
    assert only(spans).parent is None


async def test_a_failed_requests_span_has_the_error_code(
    traced: httpx.AsyncClient, engine: FakeEngine, spans: InMemorySpanExporter
) -> None:
    await traced.post(CHAT, json=body(temperature=9))
    engine.script = steps([10], EngineUnavailable(), finish=FinishReason.LENGTH)
    await traced.post(CHAT, json=body(stream=True))
    engine.refusal = RuntimeError("a bug")
    await traced.post(CHAT, json=body())
    found = [
        (span.attributes["http.response.status_code"], span.attributes["error.type"], span.status.status_code)
        for span in spans.get_finished_spans()
        if span.attributes
    ]
    assert found == [
        (400, "INVALID_REQUEST", StatusCode.UNSET),  # the conventions leave a server's status unset for a 4xx
        (200, "UNAVAILABLE", StatusCode.ERROR),
        (500, "INTERNAL", StatusCode.ERROR),
    ]


async def test_the_span_of_a_stream_that_its_client_left_agrees_with_the_log(
    engine: FakeEngine, provider: TracerProvider, spans: InMemorySpanExporter, tmp_path: Any
) -> None:
    settings = Settings(model={"name": "tiny"}, data_directory=str(tmp_path))
    app = create_app(settings, {"tiny": engine}, [Tracing(provider).observe])
    reader = Reader()
    async with answering(app, reader) as answer:
        reader.gone.set()
        await answer
    span = only(spans)
    assert (span.attributes or {})["http.response.status_code"] == 499
    assert (span.attributes or {})["http.route"] == CHAT
    assert span.status.status_code is StatusCode.UNSET
    assert b'route="/chat/completions",status="499"} 1.0' in app.state.gateway.metrics.render()


async def test_probes_have_no_spans_and_spans_contain_no_texts(
    traced: httpx.AsyncClient, engine: FakeEngine, spans: InMemorySpanExporter, spell: Any
) -> None:
    for path in ("/live", "/ready", "/health", "/metrics", "/v1/health"):
        await traced.get(path)
    assert spans.get_finished_spans() == ()
    word = "Quetzalcoatl"
    engine.script = steps(spell(word))
    await traced.post(CHAT, json=body(messages=[user(word)], stop=[word], model="tiny"))
    await traced.post(CHAT, json=body(model=word), headers={"authorization": f"Bearer {word}"})
    await traced.get(f"/{word}?{word}")
    assert len(spans.get_finished_spans()) == 3
    assert word not in "".join(span.to_json() for span in spans.get_finished_spans())


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An OTLP receiver's URL, and the requests that it received: paths and bodies."""
    received: list[tuple[str, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *given: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("by_variable", [False, True])
def test_spans_are_sent_to_a_collector(
    collector: tuple[str, list[tuple[str, bytes]]], monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    url, received = collector
    endpoint = None if by_variable else f"{url}/v1/traces"
    if by_variable:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    tracing = start_tracing(TracingSettings(endpoint=endpoint))
    assert tracing is not None
    tracing.observe(Observation("some-request"))
    tracing.close()
    [(path, content)] = received
    assert path == "/v1/traces"
    for part in (b"tiller", b"some-request", b"deployment.environment.name"):
        assert part in content


def test_tracing_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_tracing(TracingSettings()) is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert start_tracing(TracingSettings()) is None
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert start_tracing(TracingSettings(endpoint="http://127.0.0.1:9")) is None


def test_a_server_without_tracing_does_not_import_the_sdk() -> None:
    script = (
        "import sys, app.server; from app.settings import TracingSettings as S;"
        "assert app.server.start_tracing(S()) is None;"
        "heavy = ('opentelemetry.sdk', 'opentelemetry.exporter');"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


@pytest.mark.parametrize("setting", ["tracing.endpoint", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_missing_packages_are_a_one_line_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    url = "http://127.0.0.1:9/v1/traces"
    monkeypatch.setattr(subject, "_is_installed", lambda module: False)
    if setting.startswith("OTEL_"):
        monkeypatch.setenv(setting, url)
    with pytest.raises(StartError, match=rf"^{setting} is set, but tracing .*pip install '\.\[otel\]'$"):
        start_tracing(TracingSettings(endpoint=None if setting.startswith("OTEL_") else url))


def test_is_installed_detects_packages() -> None:
    assert subject._is_installed("opentelemetry.exporter.otlp.proto.http")
    assert importlib.util.find_spec("no_such_package") is None
    assert not subject._is_installed("no_such_package.of.any.kind")

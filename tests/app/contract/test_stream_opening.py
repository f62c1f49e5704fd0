"""Streams without a token for `server.stream_open_seconds`: the answer begins, and errors are events."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.errors import ApiError, EngineUnavailable, ErrorCode, InternalError
from app.main import create_app
from app.settings import Settings
from inference.interface.concepts import TrainingState, TrainingUpdate
from inference.interface.requests import GenerationRequest
from tests.app.contract.conftest import live
from tests.app.contract.support import (
    CHAT,
    CONCEPTS,
    assert_error,
    assert_error_payload,
    body,
    event_payloads,
    post_scope,
    steps,
    store_concepts,
    stream,
    until,
    was_aborted,
)
from tests.app.fakes import HANG, FakeEngine, FakeGeneration, TrainingStep, pausing, reply

Spell = Callable[[str | bytes], list[int]]
SOON = 0.05
LATE = 60.0
ROLE = {"role": "assistant", "content": ""}


@pytest.fixture
def build(engine: FakeEngine, tmp_path: Path) -> Callable[..., FastAPI]:
    """Builds a gateway with CONCEPTS that opens streams after `seconds`."""
    store_concepts(tmp_path / "data", CONCEPTS)

    def build(seconds: float = SOON, **sections: Any) -> FastAPI:
        server = {"stream_open_seconds": seconds}
        settings = Settings(
            model={"name": "tiny"}, data_directory=str(tmp_path / "data"), server=server, **sections
        )
        return create_app(settings, {"tiny": engine})

    return build


@pytest.fixture
async def late_start(engine: FakeEngine) -> "asyncio.Future[None]":
    """The engine's first token waits for it."""
    engine.start = asyncio.get_running_loop().create_future()
    return engine.start


def in_process(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://tiller")


@asynccontextmanager
async def opened(app: FastAPI, **fields: Any) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[Any]]]:
    """A streamed answer over a socket, as soon as it begins, and the JSON of its events."""
    async with (
        asyncio.timeout(10),
        live(app) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", CHAT, json=body(stream=True, **fields)) as response,
    ):
        yield response, _payloads(response)


async def _payloads(response: httpx.Response) -> AsyncIterator[Any]:
    async for line in response.aiter_lines():
        if line:
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)


async def answered_late(
    app: FastAPI, late_start: "asyncio.Future[None]", error: Exception | None = None, **fields: Any
) -> httpx.Response:
    """The response to a request whose first token, or error, comes long after `SOON`."""
    async with asyncio.timeout(10), in_process(app) as client:
        answer = asyncio.create_task(client.post(CHAT, json=body(**fields)))
        await until(lambda: app.state.gateway.models.engines[0].requests)
        await asyncio.sleep(5 * SOON)
        late_start.set_exception(error) if error else late_start.set_result(None)
        return await answer


def anonymous(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [chunk | {"id": None, "created": None} for chunk in chunks]


@pytest.mark.parametrize("n", [1, 3])
async def test_without_a_token_the_status_and_the_roles_are_sent_after_the_time(
    build: Callable[..., FastAPI], late_start: "asyncio.Future[None]", n: int
) -> None:
    async with opened(build(), n=n) as (response, payloads):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        choices = [(await anext(payloads))["choices"][0] for _ in range(n)]
        assert [(choice["index"], choice["delta"]) for choice in choices] == [(i, ROLE) for i in range(n)]
        assert not late_start.done()


async def test_nothing_is_sent_before_the_time(
    build: Callable[..., FastAPI], late_start: "asyncio.Future[None]"
) -> None:
    async with live(build(LATE)) as url, httpx.AsyncClient(base_url=url, timeout=0.5) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(CHAT, json=body(stream=True))


async def test_an_opened_stream_has_the_same_chunks_as_a_fast_one(
    build: Callable[..., FastAPI], engine: FakeEngine, late_start: "asyncio.Future[None]", spell: Spell
) -> None:
    engine.script = reply(spell("Hello"))
    fields: dict[str, Any] = {"n": 2, "top_logprobs": 1, "stream_options": {"include_usage": True}}
    late = await answered_late(build(), late_start, stream=True, **fields)
    engine.start = None
    async with in_process(build()) as client:
        fast = await stream(client, **fields)
    *chunks, done = event_payloads(late.content)
    assert done == "[DONE]"
    assert anonymous([json.loads(chunk) for chunk in chunks]) == anonymous(fast)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineUnavailable(), "UNAVAILABLE"),
        (InternalError(), "INTERNAL"),
        (RuntimeError("CUDA error in /srv/secret/worker.py"), "INTERNAL"),
    ],
)
async def test_what_fails_after_the_opening_is_the_last_event(
    build: Callable[..., FastAPI],
    engine: FakeEngine,
    late_start: "asyncio.Future[None]",
    error: Exception,
    code: str,
) -> None:
    response = await answered_late(build(), late_start, error, stream=True, n=2)
    assert response.status_code == 200
    first, second, last = event_payloads(response.content)
    assert [json.loads(chunk)["choices"][0]["delta"] for chunk in (first, second)] == [ROLE, ROLE]
    assert_error_payload(last.encode(), code)
    assert engine.free_capacity == FakeEngine.free_capacity


@pytest.mark.parametrize(("streamed", "seconds"), [(True, LATE), (False, SOON)])
async def test_what_fails_before_the_opening_has_its_own_status(
    build: Callable[..., FastAPI], late_start: "asyncio.Future[None]", streamed: bool, seconds: float
) -> None:
    """A whole answer is never opened."""
    app = build(seconds)
    response = await answered_late(app, late_start, EngineUnavailable(), stream=streamed)
    assert_error(response, 503, "UNAVAILABLE")
    assert b'\ntiller_aborts_total{model="tiny"} 0.0\n' in app.state.gateway.metrics.render(), (
        "no answer has begun"
    )


async def test_a_stream_that_waits_too_long_ends_with_queue_full(
    build: Callable[..., FastAPI], engine: FakeEngine, late_start: "asyncio.Future[None]"
) -> None:
    app = build(limits={"max_wait_seconds": 5 * SOON})
    async with in_process(app) as client:
        response = await client.post(CHAT, json=body(stream=True))
        whole = await client.post(CHAT, json=body())
    assert response.status_code == 200
    assert_error_payload(event_payloads(response.content)[-1].encode(), "QUEUE_FULL", "seconds")
    assert_error(whole, 503, "QUEUE_FULL")
    assert all(was_aborted(engine, request) for request in engine.requests)
    assert engine.free_capacity == FakeEngine.free_capacity


async def test_a_stream_that_may_not_wait_as_long_as_the_time_has_a_status(
    build: Callable[..., FastAPI], late_start: "asyncio.Future[None]"
) -> None:
    async with in_process(build(LATE, limits={"max_wait_seconds": SOON})) as client:
        assert_error(await client.post(CHAT, json=body(stream=True)), 503, "QUEUE_FULL")


async def test_errors_of_the_request_have_a_status_even_if_streams_open_at_once(
    build: Callable[..., FastAPI], engine: FakeEngine, late_start: "asyncio.Future[None]"
) -> None:
    refused = {
        400: {"temperature": 9},
        404: {"steering_concepts": ["unknown"]},
        503: {"n": 16},
    }
    engine.free_capacity = 8
    async with in_process(build(1e-9)) as client:
        for status, fields in refused.items():
            response = await client.post(CHAT, json=body(stream=True, **fields))
            assert response.status_code == status, response.text
    assert engine.requests == []


async def test_a_refusal_by_a_slow_engine_is_the_last_event(
    build: Callable[..., FastAPI], engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = engine.submit

    async def submit_slowly(request: GenerationRequest) -> FakeGeneration:
        await asyncio.sleep(5 * SOON)
        return await submit(request)

    monkeypatch.setattr(engine, "submit", submit_slowly)
    engine.refusal = ApiError(ErrorCode.QUEUE_FULL, "too many requests are waiting")
    async with in_process(build()) as client:
        response = await client.post(CHAT, json=body(stream=True))
    assert response.status_code == 200
    assert_error_payload(event_payloads(response.content)[-1].encode(), "QUEUE_FULL")


class Log:
    """The access log, and the gateway's metrics."""

    def __init__(self, app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "tiller.access")
        self._app, self._caplog = app, caplog

    def lines(self) -> list[tuple[int, dict[str, Any]]]:
        """The status and the fields of each request."""
        records = [record for record in self._caplog.records if record.name == "tiller.access"]
        return [(record.args["status"], vars(record)["fields"]) for record in records]  # type: ignore[call-overload, index]

    def metric(self, name: str) -> float:
        lines = self._app.state.gateway.metrics.render().decode().splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{"))
        )


@pytest.mark.parametrize("seconds", [SOON, LATE], ids=["opened", "not opened"])
async def test_a_client_that_leaves_while_it_waits_ends_its_request(
    build: Callable[..., FastAPI],
    engine: FakeEngine,
    late_start: "asyncio.Future[None]",
    caplog: pytest.LogCaptureFixture,
    seconds: float,
) -> None:
    app = build(seconds)
    log = Log(app, caplog)
    async with live(app) as url, httpx.AsyncClient(base_url=url, timeout=0.5) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(CHAT, json=body(stream=True, n=2))
        await until(log.lines)
    [(status, fields)] = log.lines()
    assert status == 499
    assert "first_token_seconds" not in fields
    assert was_aborted(engine, engine.requests[0])
    assert engine.free_capacity == FakeEngine.free_capacity
    assert log.metric("tiller_time_to_first_token_seconds_count") == 0
    assert log.metric("tiller_running") == 0
    assert log.metric("tiller_aborts_total") == (seconds == SOON), "what has begun counts as aborted"
    assert log.metric("tiller_prompt_tokens_total") == 0


@pytest.mark.parametrize("has_first_token", [False, True])
async def test_a_client_that_leaves_without_reading_the_roles_ends_its_request(
    build: Callable[..., FastAPI],
    engine: FakeEngine,
    late_start: "asyncio.Future[None]",
    has_first_token: bool,
) -> None:
    engine.script = steps([70], HANG)
    unread, gone = asyncio.Event(), asyncio.Event()
    sent = [{"type": "http.request", "body": json.dumps(body(stream=True)).encode()}]

    async def receive() -> dict[str, Any]:
        if not sent:
            await gone.wait()
        return sent.pop() if sent else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            unread.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(5):
        answer = asyncio.create_task(build()(post_scope(CHAT), receive, send))
        await unread.wait()
        if has_first_token:
            late_start.set_result(None)
            await asyncio.sleep(SOON)
        gone.set()
        await answer
    assert was_aborted(engine, engine.requests[0])
    assert engine.free_capacity == FakeEngine.free_capacity


async def test_a_server_that_cancels_an_opened_stream_aborts_it(
    build: Callable[..., FastAPI], engine: FakeEngine, late_start: "asyncio.Future[None]"
) -> None:
    async with in_process(build()) as client:
        answer = asyncio.create_task(client.post(CHAT, json=body(stream=True)))
        await asyncio.sleep(5 * SOON)
        answer.cancel()
        await asyncio.wait({answer})
    await until(lambda: was_aborted(engine, engine.requests[0]))
    assert engine.free_capacity == FakeEngine.free_capacity


async def test_the_time_to_the_first_token_is_not_that_of_the_opening(
    build: Callable[..., FastAPI],
    engine: FakeEngine,
    late_start: "asyncio.Future[None]",
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.script = reply([70, 71])
    app = build()
    log = Log(app, caplog)
    await answered_late(app, late_start, stream=True)
    [(status, fields)] = log.lines()
    assert status == 200
    assert fields["first_token_seconds"] >= 5 * SOON
    assert log.metric("tiller_time_to_first_token_seconds_count") == 1
    assert log.metric("tiller_time_to_first_token_seconds_sum") >= 5 * SOON
    assert log.metric("tiller_queue_time_seconds_count") == 1


async def test_a_stream_that_fails_before_its_first_token_costs_its_caller_nothing(
    build: Callable[..., FastAPI], engine: FakeEngine, late_start: "asyncio.Future[None]"
) -> None:
    app = build(limits={"tokens_per_minute": 100, "max_requests": 1})
    fields = {"max_tokens": 90}
    failed = await answered_late(app, late_start, EngineUnavailable(), stream=True, **fields)
    assert_error_payload(event_payloads(failed.content)[-1].encode(), "UNAVAILABLE")
    engine.start = None
    async with in_process(app) as client:
        assert (await client.post(CHAT, json=body(**fields))).status_code == 200


def failing(command: Any) -> Iterable[TrainingStep]:
    yield TrainingUpdate(command.concept, TrainingState.FAILED, detail="the examples differ in nothing")


async def trained_late(
    app: FastAPI, engine: FakeEngine, meanwhile: Callable[[httpx.AsyncClient], Awaitable[object]]
) -> httpx.Response:
    """The response to a streamed request that waits for its concept. `meanwhile` ends the wait."""
    async with asyncio.timeout(10), in_process(app) as client:
        payload = body(stream=True, steering_concepts=["waited-for"])
        answer = asyncio.create_task(client.post(CHAT, json=payload))
        await until(lambda: engine.in_training)
        await asyncio.sleep(5 * SOON)
        await meanwhile(client)
        return await answer


async def test_a_stream_opens_while_its_concept_is_trained(
    build: Callable[..., FastAPI], engine: FakeEngine, spell: Spell
) -> None:
    trained = asyncio.Event()
    engine.training, engine.script = pausing(trained), reply(spell("Hi"))
    async with opened(build(), steering_concepts=["waited-for"]) as (response, payloads):
        assert response.status_code == 200
        assert (await anext(payloads))["choices"][0]["delta"] == ROLE
        assert engine.requests == [], "the request waits for the training"
        trained.set()
        rest = [payload async for payload in payloads]
    assert rest[0]["choices"][0]["delta"] == {"content": "H"}
    assert rest[-1] == "[DONE]"
    assert engine.requests[0].steering is not None


@pytest.mark.parametrize("lost", [False, True])
async def test_a_training_that_fails_after_the_opening_is_the_last_event(
    build: Callable[..., FastAPI], engine: FakeEngine, lost: bool
) -> None:
    go_on = asyncio.Event()
    fault = [EngineUnavailable()] if lost else []
    engine.training = lambda command: [go_on, *fault, *failing(command)]

    async def end(client: httpx.AsyncClient) -> None:
        go_on.set()

    response = await trained_late(build(), engine, end)
    last = event_payloads(response.content)[-1].encode()
    assert_error_payload(last, "UNAVAILABLE" if lost else "INVALID_REQUEST")
    assert engine.requests == []
    assert engine.free_capacity == FakeEngine.free_capacity


async def test_a_concept_that_is_deleted_after_the_opening_is_the_last_event(
    build: Callable[..., FastAPI], engine: FakeEngine
) -> None:
    engine.training = pausing(HANG)
    response = await trained_late(
        build(), engine, lambda client: client.delete("/steering_concepts/waited-for")
    )
    last = event_payloads(response.content)[-1].encode()
    assert_error_payload(last, "UNKNOWN_STEERING_CONCEPT", param="steering_concepts")


async def test_a_client_that_leaves_an_opened_stream_does_not_stop_the_training(
    build: Callable[..., FastAPI], engine: FakeEngine
) -> None:
    trained = asyncio.Event()
    engine.training = pausing(trained)
    app = build()
    async with live(app) as url, httpx.AsyncClient(base_url=url) as client:
        payload = body(stream=True, steering_concepts=["waited-for"])
        async with client.stream("POST", CHAT, json=payload) as response:
            assert response.status_code == 200
        await asyncio.sleep(0.1)
        trained.set()
        async with asyncio.timeout(5):
            while (await client.get("/steering_concepts/waited-for")).json()["state"] != "ready":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert engine.requests == []

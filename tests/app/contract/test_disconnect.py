"""Over a real socket: tokens arrive one by one, and a client that disconnects ends its generation."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.errors import InternalError
from inference.interface.requests import GenerationRequest
from tests.app.contract.support import (
    CHAT,
    assert_error_payload,
    body,
    event_payloads,
    events,
    post_scope,
    steps,
    until,
    was_aborted,
)
from tests.app.fakes import HANG, FakeEngine, FakeGeneration, Step, pausing

Spell = Callable[[str | bytes], list[int]]

pytestmark = pytest.mark.asyncio(loop_scope="session")


@asynccontextmanager
async def streaming(url: str, **fields: Any) -> AsyncIterator[httpx.Response]:
    """The response to a streamed request, for five seconds at most. The client disconnects at the end."""
    async with (
        asyncio.timeout(5),
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", CHAT, json=body(stream=True, **fields)) as response,
    ):
        yield response


async def answer_of(url: str, **fields: Any) -> str:
    async with httpx.AsyncClient(base_url=url) as client:
        answer = (await client.post(CHAT, json=body(**fields))).json()
    return answer["choices"][0]["message"]["content"]


def endless(request: GenerationRequest) -> Iterable[Step]:
    """A script: every choice generates the same token without end."""
    while True:
        yield [event for index in range(request.n) for event in events(request, [70], index)]


async def read_text(response: httpx.Response, wanted: str, n: int = 1) -> None:
    """Reads until every choice has sent this text."""
    texts = [""] * n
    async for line in response.aiter_lines():
        if line:
            (choice,) = json.loads(line.removeprefix("data: "))["choices"]
            texts[choice["index"]] += choice["delta"].get("content", "")
        if texts == [wanted] * n:
            return
    pytest.fail(f"the stream ended with {texts}")


async def test_text_arrives_before_the_next_token_is_generated(
    live_url: str, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(spell("Hel"), spell("lo"), HANG)
    async with streaming(live_url) as response:
        await read_text(response, "Hello")


async def test_only_what_may_become_a_stop_sequence_is_held_back(
    live_url: str, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(*([token_id] for token_id in spell("abEN")), HANG)
    async with streaming(live_url, stop=["END", "no"]) as response:
        await read_text(response, "ab")


async def test_only_the_incomplete_character_is_held_back(
    live_url: str, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(spell("ab日"), spell("本")[:2], HANG)
    async with streaming(live_url) as response:
        await read_text(response, "ab日")


@pytest.mark.parametrize("n", [1, 3])
async def test_a_streamed_generation_is_aborted_when_its_client_disconnects(
    live_url: str, engine: FakeEngine, spell: Spell, n: int
) -> None:
    def play(request: GenerationRequest) -> Iterable[Step]:
        yield [event for index in range(n) for event in events(request, spell("Hello"), index)]
        yield HANG

    engine.script = play
    async with streaming(live_url, n=n) as response:
        await read_text(response, "Hello", n)
    await until(lambda: was_aborted(engine, engine.requests[0]))


@pytest.mark.parametrize("n", [1, 3])
async def test_an_unstreamed_generation_is_aborted_when_its_client_disconnects(
    live_url: str, engine: FakeEngine, spell: Spell, n: int
) -> None:
    engine.script = steps(spell("Hello"), HANG)
    await disconnect_when(live_url, lambda: engine.steps_played, body(n=n))
    await until(lambda: was_aborted(engine, engine.requests[0]))


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_endless_generation_is_aborted_when_its_client_disconnects(
    live_url: str, engine: FakeEngine, streamed: bool
) -> None:
    engine.script = endless
    await disconnect_when(live_url, lambda: engine.steps_played, body(n=2, stream=streamed))
    await until(lambda: was_aborted(engine, engine.requests[0]))
    played = engine.steps_played
    await asyncio.sleep(0.1)
    assert engine.steps_played <= played + 1


async def disconnect_when(
    url: str, when: Callable[[], Any], payload: dict[str, Any], path: str = CHAT
) -> None:
    """Sends the request over its own socket, and closes the socket once `when()` is true."""
    _, _, address = url.rpartition("/")
    host, port = address.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    raw = json.dumps(payload).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    await until(when)
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_disconnects_does_not_affect_another(
    live_url: str, engine: FakeEngine, spell: Spell
) -> None:
    hanging, answering = steps(spell("a"), HANG), steps(spell("fine"))
    engine.script = lambda request: (hanging if len(engine.requests) == 1 else answering)(request)
    await disconnect_when(live_url, lambda: engine.steps_played, body(stream=True))
    assert await answer_of(live_url) == "fine"
    await until(lambda: was_aborted(engine, engine.requests[0]))


async def test_a_stream_that_fails_ends_after_its_error_event(
    live_url: str, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(spell("abc"), InternalError())
    async with streaming(live_url) as response:
        lines = [line async for line in response.aiter_lines() if line]
    assert_error_payload(lines[-1].removeprefix("data: ").encode(), "INTERNAL")
    assert not any("[DONE]" in line for line in lines)


async def test_requests_are_answered_concurrently(live_url: str, engine: FakeEngine, spell: Spell) -> None:
    hanging, answering = steps(spell("a"), HANG), steps(spell("fine"))
    engine.script = lambda request: (hanging if len(engine.requests) == 1 else answering)(request)
    async with streaming(live_url) as response:
        await read_text(response, "a")
        assert await answer_of(live_url) == "fine"


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_disconnects_during_admission_aborts_its_request(
    live_url: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    submitted, admitted = asyncio.Event(), asyncio.Event()
    submit = engine.submit

    async def submit_slowly(request: GenerationRequest) -> FakeGeneration:
        submitted.set()
        await admitted.wait()
        return await submit(request)

    monkeypatch.setattr(engine, "submit", submit_slowly)
    engine.script = endless
    await disconnect_when(live_url, submitted.is_set, body(stream=streamed))
    await asyncio.sleep(0.05)
    admitted.set()
    await asyncio.sleep(0.1)
    assert all(was_aborted(engine, request) for request in engine.requests)


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_disconnects_while_its_concept_is_trained_starts_no_generation(
    serve_live: Callable[[], Awaitable[str]], engine: FakeEngine, streamed: bool
) -> None:
    url = await serve_live()
    go_on = asyncio.Event()
    engine.training = pausing(go_on)
    payload = body(stream=streamed, steering_concepts=["waited-for"])
    await disconnect_when(url, lambda: engine.in_training, payload)
    await asyncio.sleep(0.1)
    go_on.set()
    async with httpx.AsyncClient(base_url=url) as client:
        await until_ready(client, "waited-for")
        assert engine.requests == []
        assert (await client.post(CHAT, json=payload)).status_code == 200
        metrics = (await client.get("/metrics")).text
    assert 'tiller_requests_total{route="/chat/completions",status="499"} 1.0' in metrics


@pytest.mark.parametrize("given", [{"texts": ["a", "b"]}, {"messages": [{"role": "user", "content": "a"}]}])
async def test_a_reading_is_cancelled_when_its_client_disconnects(
    serve_live: Callable[[], Awaitable[str]],
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
) -> None:
    url = await serve_live()
    begun, cancelled = asyncio.Event(), asyncio.Event()
    read = engine.read

    async def hang(concept: str, prompts: Any, texts: Any) -> list[list[float]]:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise AssertionError

    monkeypatch.setattr(engine, "read", hang)
    path = "/steering_concepts/waited-for/read"
    await disconnect_when(url, begun.is_set, given, path)
    await until(cancelled.is_set)
    monkeypatch.setattr(engine, "read", read)
    async with httpx.AsyncClient(base_url=url) as client:
        assert (await client.post(path, json=given)).status_code == 200
        metrics = (await client.get("/metrics")).text
    route = "/steering_concepts/{concept:path}/read"
    assert f'tiller_requests_total{{route="{route}",status="499"}} 1.0' in metrics


async def test_a_reading_does_not_begin_if_its_client_disconnects_during_the_training(
    serve_live: Callable[[], Awaitable[str]], engine: FakeEngine
) -> None:
    url = await serve_live()
    go_on = asyncio.Event()
    engine.training = pausing(go_on)
    path = "/steering_concepts/waited-for/read"
    await disconnect_when(url, lambda: engine.in_training, {"texts": ["a"]}, path)
    await asyncio.sleep(0.1)
    go_on.set()
    async with httpx.AsyncClient(base_url=url) as client:
        await until_ready(client, "waited-for")
        assert engine.reads == []
        assert (await client.post(path, json={"texts": ["a"]})).status_code == 200


async def test_a_concept_creation_goes_on_when_its_client_disconnects(
    serve_live: Callable[[], Awaitable[str]], engine: FakeEngine
) -> None:
    url = await serve_live()
    go_on = asyncio.Event()
    engine.training = pausing(go_on)
    payload = {"name": "left", "examples": [{"positive": "a", "negative": "b"}]}
    await disconnect_when(url, lambda: engine.in_training, payload, "/steering_concepts")
    await asyncio.sleep(0.1)
    go_on.set()
    async with httpx.AsyncClient(base_url=url) as client:
        await until_ready(client, "left")
        created = await client.post("/steering_concepts", json=payload)
    assert created.status_code == 201
    assert len(engine.trainings) == 1


async def until_ready(client: httpx.AsyncClient, concept: str) -> None:
    async with asyncio.timeout(5):
        while (await client.get(f"/steering_concepts/{concept}")).json()["state"] != "ready":  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Reader:
    """A streaming client, as the ASGI app sees it. It reads only while `reading` is set."""

    def __init__(self) -> None:
        self._messages = [{"type": "http.request", "body": json.dumps(body(stream=True)).encode()}]
        self.reading = asyncio.Event()
        self.waiting = asyncio.Event()
        """Set once the app waits for this client to read."""
        self.gone = asyncio.Event()
        self.read = b""

    async def receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            self.waiting.set()
            await self.reading.wait()
            self.read += message["body"]


@asynccontextmanager
async def answering(app: FastAPI, reader: Reader) -> AsyncIterator["asyncio.Task[None]"]:
    """Runs the app for this client, which does not read yet. Yields the app's task."""
    async with asyncio.timeout(5):
        task = asyncio.create_task(app(post_scope(CHAT), reader.receive, reader.send))
        await reader.waiting.wait()
        yield task


async def test_the_server_waits_for_a_client_that_does_not_read(app: FastAPI, engine: FakeEngine) -> None:
    reader = Reader()
    async with answering(app, reader) as answer:
        await asyncio.sleep(0.05)
        assert engine.steps_played == 0, "no events are made before the client reads"
        assert not answer.done()
        reader.reading.set()
        await answer
    assert event_payloads(reader.read)[-1] == "[DONE]"
    assert engine.aborts == []


async def test_a_client_that_disconnects_before_the_first_chunk_aborts_its_generation(
    app: FastAPI, engine: FakeEngine
) -> None:
    reader = Reader()
    async with answering(app, reader) as answer:
        reader.gone.set()
        await answer
    assert was_aborted(engine, engine.requests[0])


async def test_a_stream_whose_client_disconnects_is_counted_once(app: FastAPI, engine: FakeEngine) -> None:
    reader = Reader()
    async with answering(app, reader) as answer:
        reader.gone.set()
        await answer
    metrics = app.state.gateway.metrics.render().decode()
    counted = [line for line in metrics.splitlines() if line.startswith("tiller_requests_total{")]
    assert counted == ['tiller_requests_total{route="/chat/completions",status="499"} 1.0']


async def test_a_server_that_cancels_the_app_aborts_the_generation(app: FastAPI, engine: FakeEngine) -> None:
    """uvicorn does this at shutdown, when a client still does not read after the grace period."""
    async with answering(app, Reader()) as answer:
        answer.cancel()
        await asyncio.wait({answer})
    assert answer.cancelled()
    assert was_aborted(engine, engine.requests[0])

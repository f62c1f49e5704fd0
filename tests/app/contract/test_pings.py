"""Comment lines for proxies that cut silent connections. None by default."""

import asyncio
import json
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from app.errors import EngineUnavailable
from app.main import create_app
from app.settings import ServerSettings, Settings
from tests.app.contract.conftest import live
from tests.app.contract.support import (
    CHAT,
    assert_error_payload,
    body,
    event_payloads,
    post_scope,
    steps,
    user,
    was_aborted,
)
from tests.app.fakes import HANG, FakeEngine, reply

Spell = Callable[[str | bytes], list[int]]
PING = b": ping\n\n"
OFTEN = {"ping_seconds": 0.05}


@pytest.fixture
def build(engine: FakeEngine, tmp_path: Path) -> Callable[..., FastAPI]:
    def build(**server: object) -> FastAPI:
        server_settings = ServerSettings().model_copy(update=server)  # Unchecked: the minimum is 1 second.
        settings = Settings(
            model={"name": "tiny"}, data_directory=str(tmp_path / "data"), server=server_settings
        )
        return create_app(settings, {"tiny": engine})

    return build


def start_late(engine: FakeEngine) -> None:
    """The engine's first token comes in 0.4 seconds."""
    engine.start = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.4, engine.start.set_result, None)


async def streamed(app: FastAPI) -> bytes:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with asyncio.timeout(5), httpx.AsyncClient(transport=transport, base_url="http://tiller") as client:
        response = await client.post(CHAT, json=body(stream=True))
    assert response.status_code == 200
    return response.content


def contents(raw: bytes) -> list[object]:
    chunks = [json.loads(payload) for payload in event_payloads(raw)[:-1]]
    return [chunk["choices"] for chunk in chunks]


async def test_there_are_no_pings_by_default(build: Callable[..., FastAPI], engine: FakeEngine) -> None:
    assert Settings.model_fields["server"].default.ping_seconds is None
    app = build(stream_open_seconds=0.01)
    start_late(engine)
    assert PING.strip() not in await streamed(app)


async def test_pings_come_between_the_same_events(
    build: Callable[..., FastAPI], engine: FakeEngine, spell: Spell
) -> None:
    engine.script = reply(spell("Hello"))
    app = build(stream_open_seconds=0.01, **OFTEN)
    start_late(engine)
    pinged = await streamed(app)
    assert pinged.startswith(b"data: ")
    assert 1 <= pinged.count(PING) <= 8, "one each 0.05 of 0.4 seconds"
    engine.start = None
    assert contents(pinged.replace(PING, b"")) == contents(await streamed(build()))


async def test_a_stream_that_is_shorter_than_the_time_has_no_pings(
    build: Callable[..., FastAPI], engine: FakeEngine
) -> None:
    engine.script = reply([70] * 200)
    assert PING not in await streamed(build(ping_seconds=1.0))


async def test_pings_come_in_pauses_between_tokens(build: Callable[..., FastAPI], engine: FakeEngine) -> None:
    engine.script = steps([70], HANG)
    async with (
        asyncio.timeout(5),
        live(build(**OFTEN)) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", CHAT, json=body(stream=True)) as response,
    ):
        lines = response.aiter_lines()
        while await anext(lines) != ": ping":
            pass
        assert [await anext(lines) for _ in range(4)] == ["", ": ping", "", ": ping"]
    assert was_aborted(engine, engine.requests[0]), "the client has left"
    assert engine.free_capacity == FakeEngine.free_capacity


async def test_nothing_is_sent_after_the_end(build: Callable[..., FastAPI], engine: FakeEngine) -> None:
    requests = [{"type": "http.request", "body": json.dumps(body(stream=True)).encode()}]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not requests:
            await asyncio.Event().wait()
        return requests.pop()

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    app = build(stream_open_seconds=0.01, **OFTEN)
    start_late(engine)
    async with asyncio.timeout(5):
        await app(post_scope(CHAT), receive, send)
    assert PING in [message.get("body") for message in sent]
    await asyncio.sleep(0.2)
    assert [message.get("more_body") for message in sent[-2:]] == [True, False]


async def test_an_error_is_still_the_last_event(build: Callable[..., FastAPI], engine: FakeEngine) -> None:
    engine.script = steps([70], EngineUnavailable())
    raw = await streamed(build(**OFTEN))
    assert_error_payload(event_payloads(raw.replace(PING, b""))[-1].encode(), "UNAVAILABLE")


async def test_a_server_that_cancels_the_app_aborts_the_generation(
    build: Callable[..., FastAPI], engine: FakeEngine
) -> None:
    engine.script = steps([70], HANG)
    answer = asyncio.create_task(streamed(build(**OFTEN)))
    await asyncio.sleep(0.2)
    answer.cancel()
    await asyncio.wait({answer})
    await asyncio.sleep(0)
    assert was_aborted(engine, engine.requests[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_openais_client_ignores_pings(
    build: Callable[..., FastAPI], engine: FakeEngine, spell: Spell
) -> None:
    engine.script = reply(spell("Hi"))
    start_late(engine)
    async with (
        live(build(stream_open_seconds=0.01, **OFTEN)) as url,
        openai.AsyncOpenAI(api_key="token", base_url=f"{url}/v1", max_retries=0) as sdk,
    ):
        answer = await sdk.chat.completions.create(model="tiny", messages=[user("hi")], stream=True)
        assert [c.choices[0].delta.content async for c in answer] == ["", "H", "i", None]

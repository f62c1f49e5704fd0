"""The access log: one line for each request, and its fields in JSON."""

import asyncio
import hashlib
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.errors import EngineUnavailable, QueueFull
from app.settings import ServerSettings
from inference.interface.logs import JsonFormatter
from inference.interface.requests import FinishReason
from tests.app.contract.support import CHAT, CONCEPTS, body, steps, store_concepts, user
from tests.app.fakes import HANG, FakeEngine, reply
from tests.app.live import serving

TOKEN = "tiller_of-ada"
AUTH = {"tokens": [{"name": "Ada's phone", "sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}]}
HEADERS = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """Reads the access log so far, formatted as JSON."""
    caplog.set_level(logging.INFO, "tiller.access")
    formatter = JsonFormatter({})

    def read() -> list[dict[str, Any]]:
        records = [record for record in caplog.records if record.name == "tiller.access"]
        return [json.loads(formatter.format(record)) for record in records]

    return read


async def test_a_chat_has_one_line_with_its_numbers(
    serve: Any, engine: FakeEngine, lines: Any, tmp_path: Any
) -> None:
    store_concepts(tmp_path / "data", CONCEPTS)
    client = await serve(auth=AUTH)
    engine.script = reply([10, 11, 12], FinishReason.LENGTH)
    payload = body(n=2, steering_concepts=["a", "b", "same-as-a"])
    answer = await client.post(f"/v1{CHAT}", json=payload, headers=HEADERS)
    [line] = lines()
    assert line["message"] == "POST /chat/completions 200"
    assert (line["method"], line["route"], line["status"]) == ("POST", "/chat/completions", 200)
    assert (
        line["request_id"] == answer.headers["x-request-id"] == answer.json()["id"].removeprefix("chatcmpl-")
    )
    assert line["token"] == "Ada's phone"
    assert line["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert line["completion_tokens"] == 6
    assert line["finish_reasons"] == ["length", "length"]
    assert line["concepts"] == 2, "two names of the same examples are one"
    assert 0 < line["first_token_seconds"] <= line["seconds"] < 60
    assert line["queue_seconds"] == 0.0
    assert not {"error", "client_request_id", "messages", "answers", "trace_id"} & set(line)


async def test_a_stream_has_one_line(client: httpx.AsyncClient, engine: FakeEngine, lines: Any) -> None:
    engine.script = reply([10] * 50)
    await client.post(CHAT, json=body(stream=True))
    [line] = lines()
    assert (line["status"], line["completion_tokens"], line["finish_reasons"]) == (200, 50, ["stop"])


async def test_the_line_of_a_stream_that_fails_has_the_error_code(
    client: httpx.AsyncClient, engine: FakeEngine, lines: Any
) -> None:
    engine.script = steps([10], EngineUnavailable(), finish=FinishReason.LENGTH)
    await client.post(CHAT, json=body(stream=True))
    [line] = lines()
    assert (line["status"], line["error"], line["finish_reasons"]) == (200, "UNAVAILABLE", [None])


@pytest.mark.asyncio(loop_scope="session")
async def test_a_client_that_disconnects(live_url: str, engine: FakeEngine, lines: Any) -> None:
    engine.script = steps([10], HANG)
    async with (
        httpx.AsyncClient() as client,
        client.stream("POST", live_url + CHAT, json=body(stream=True)) as answer,
    ):
        await anext(answer.aiter_bytes())
    async with asyncio.timeout(5):
        while not lines():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    [line] = lines()
    assert (line["status"], line["finish_reasons"], line["completion_tokens"]) == (499, [None], 1)


async def test_a_refusal_names_its_code(serve: Any, engine: FakeEngine, lines: Any) -> None:
    client = await serve(auth=AUTH)
    await client.post(CHAT, json=body())
    await client.post(CHAT, json=body(temperature=9), headers=HEADERS)
    await client.post(CHAT, json=body(max_tokens=10**6), headers=HEADERS)
    engine.refusal = QueueFull()
    await client.post(CHAT, json=body(), headers=HEADERS)
    engine.free_capacity = 0
    await client.post(CHAT, json=body(), headers=HEADERS)
    await client.get("/nothing/here", headers=HEADERS)
    shown = [(line["route"], line["status"], line["error"], line.get("token")) for line in lines()]
    chat, ada = "/chat/completions", "Ada's phone"
    assert shown == [
        (chat, 401, "UNAUTHORIZED", None),
        (chat, 400, "INVALID_REQUEST", ada),
        (chat, 400, "CONTEXT_LENGTH_EXCEEDED", ada),
        (chat, 503, "QUEUE_FULL", ada),
        (chat, 503, "QUEUE_FULL", None),  # refused before authentication
        ("other", 404, "NOT_FOUND", ada),
    ]
    assert [line.get("prompt_tokens", 0) > 0 for line in lines()] == [False, False, False, True, False, False]


async def test_probes_are_logged_only_when_they_fail(
    client: httpx.AsyncClient, engine: FakeEngine, lines: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/live", "/ready", "/health", "/v1/health", "/metrics"):
        await client.get(path)
    assert lines() == []
    engine.available = False
    await client.get("/health")
    assert [(line["route"], line["status"], line["error"]) for line in lines()] == [
        ("/health", 503, "UNAVAILABLE")
    ]
    caplog.set_level(logging.DEBUG, "tiller.access")
    await client.get("/metrics")
    assert [line["route"] for line in lines()] == ["/health", "/metrics"]


@pytest.mark.parametrize("name", ["X-Request-Id", "X-Client-Request-Id"])
@pytest.mark.parametrize(
    ("given", "logged"),
    [
        ("a3f-9.1:Z_/+=@b", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("two words", False),
        ("a\tb", False),
        ("", False),
    ],
)
async def test_a_callers_request_id_is_logged_but_not_used_as_the_servers(
    client: httpx.AsyncClient, lines: Any, name: str, given: str, logged: bool
) -> None:
    answer = await client.get("/version", headers={name: given})
    [line] = lines()
    assert line.get("client_request_id") == (given if logged else None)
    assert answer.headers["x-request-id"] == line["request_id"] != given
    assert len(line["request_id"]) == 32


async def test_openais_header_for_the_request_id_takes_precedence(
    client: httpx.AsyncClient, lines: Any
) -> None:
    await client.get("/version", headers={"X-Request-Id": "proxy", "X-Client-Request-Id": "mine"})
    assert lines()[0]["client_request_id"] == "mine"


@pytest.mark.parametrize("stream", [False, True])
async def test_texts_are_logged_if_the_operator_turns_that_on(
    serve: Any, engine: FakeEngine, lines: Any, spell: Any, stream: bool
) -> None:
    client = await serve(log={"texts": True}, auth=AUTH)
    engine.script = steps(spell("Good "), spell("day"))
    await client.post(CHAT, json=body(messages=[user("Say it")], stream=stream), headers=HEADERS)
    [line] = lines()
    assert line["messages"] == [{"role": "user", "content": "Say it"}]
    assert line["answers"] == ["Good day"]
    assert TOKEN not in json.dumps(line)


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", CHAT, CHAT),
        ("POST", f"/v1{CHAT}", CHAT),
        ("GET", CHAT, CHAT),
        ("GET", "/models/a/b", "/models/{model:path}"),
        ("DELETE", "/v1/models/a/tokenizer", "/models/{model:path}/tokenizer"),
        ("GET", "/docs", "/docs"),
        ("GET", "/nothing", "other"),
        ("POST", f"{CHAT}/", "other"),
        ("POST", f"/v1/v1{CHAT}", "other"),
    ],
)
async def test_the_line_of_a_request_that_reaches_no_route_names_the_route(
    serve: Any, lines: Any, method: str, path: str, route: str
) -> None:
    client = await serve(auth=AUTH)
    status = (await client.request(method, path)).status_code
    metrics = (await client.get("/metrics", headers=HEADERS)).text
    assert (lines()[0]["method"], lines()[0]["route"], lines()[0]["status"]) == (method, route, status)
    assert f'tiller_requests_total{{route="{route}",status="{status}"}} 1.0' in metrics


async def test_the_line_of_a_body_that_is_too_large_names_the_route(serve: Any, lines: Any) -> None:
    client = await serve(server={"max_body_bytes": 10})
    for content in (b"x" * 11, chunks()):
        assert (await client.post(CHAT, content=content)).status_code == 413
    assert [line["message"] for line in lines()] == [f"POST {CHAT} 413"] * 2


async def chunks() -> AsyncIterator[bytes]:
    for _ in range(11):
        yield b"x"


async def test_the_line_of_a_method_that_is_not_allowed_names_the_route(
    client: httpx.AsyncClient, lines: Any
) -> None:
    await client.get(CHAT)
    await client.delete("/models/x")
    assert [line["message"] for line in lines()] == [f"GET {CHAT} 405", "DELETE /models/{model:path} 405"]


SLOW = {"content-length: 5": 408, "transfer-encoding: chunked\r\n\r\nzz\r\n": 400, "x: " + "y" * 40_000: 431}


@pytest.mark.parametrize(("rest", "status"), SLOW.items(), ids=map(str, SLOW.values()))
def test_a_request_that_the_connection_refuses_has_one_line_with_its_route(
    settings: Any, engine: FakeEngine, lines: Any, rest: str, status: int
) -> None:
    settings = settings.model_copy(update={"server": ServerSettings(body_seconds=0.2)})
    with serving(settings, engine) as address, socket.create_connection(address, timeout=10) as client:
        client.sendall(f"POST /v1{CHAT}?nice=true HTTP/1.1\r\nhost: x\r\n{rest}\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 %d " % status)
        time.sleep(0.2)
    assert [line["message"] for line in lines()] == [f"POST {CHAT} {status}"]


def test_bytes_that_are_no_request_have_a_line(settings: Any, engine: FakeEngine, lines: Any) -> None:
    with serving(settings, engine) as address, socket.create_connection(address, timeout=10) as client:
        client.sendall(b"nonsense\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    assert [line["message"] for line in lines()] == ["- other 400"]

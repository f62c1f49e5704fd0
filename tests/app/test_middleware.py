"""Around every request: who may call, how much, and what is told when we fail."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from app.access import AccessTokens, TokenFile
from app.auth import Authenticate
from app.metrics import Metrics
from app.middleware import LimitBody, Observe
from app.settings import AccessToken


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that reads the whole body and says how long it was."""
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


async def fail(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("/secret/path")


async def fail_late(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("late")


async def call(app: object, path: str = "/x", **options: object) -> httpx.Response:
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://tiller") as client:
        return await client.post(path, **options)  # type: ignore[arg-type]


def guarded(*tokens: str, open_metrics: bool = False) -> Authenticate:
    known = [AccessToken(name="x", sha256=hashlib.sha256(token.encode()).hexdigest()) for token in tokens]
    return Authenticate(read_all, AccessTokens(known, TokenFile(Path("/none"))), open_metrics)


@pytest.mark.parametrize("header", ["Bearer one", "bearer two", "BEARER  one "])
async def test_any_configured_token_passes(header: str) -> None:
    assert (await call(guarded("one", "two"), headers={"authorization": header})).status_code == 200


@pytest.mark.parametrize(
    "header", ["", "one", "Basic one", "Bearer", "Bearer ", "Bearer One", "Bearer one two"]
)
async def test_anything_else_does_not(header: str) -> None:
    answer = await call(guarded("one"), headers={"authorization": header})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(
    ("path", "status"),
    [(path, 200) for path in ("/health", "/version", "/docs", "/openapi.json", "/")]
    + [(path, 401) for path in ("/metrics", "/nothing", "/healthy", "/health/", "/v12/health", "/v2/health")],
)
async def test_which_paths_are_open(prefix: str, path: str, status: int) -> None:
    assert (await call(guarded("one"), prefix + path)).status_code == status


async def test_metrics_can_be_opened() -> None:
    assert (await call(guarded("one", open_metrics=True), "/metrics")).status_code == 200


async def test_the_body_is_not_read_before_the_token() -> None:
    async def receive() -> Message:
        raise AssertionError("read")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await guarded("one")({"type": "http", "path": "/x", "headers": []}, receive, send)
    assert sent[0]["status"] == 401


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 10


def limited() -> Observe:
    return Observe(LimitBody(read_all, 100), Metrics())


@pytest.mark.parametrize("content", [b"x" * 100, chunks(10)], ids=["announced", "chunked"])
async def test_a_body_up_to_the_limit_is_read(content: object) -> None:
    assert (await call(limited(), content=content)).text == "100"


@pytest.mark.parametrize("content", [b"x" * 101, chunks(11)], ids=["announced", "chunked"])
async def test_a_longer_body_is_refused(content: object) -> None:
    answer = await call(limited(), content=content)
    assert (answer.status_code, answer.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_fault_is_a_500_with_the_request_id() -> None:
    answer = await call(Observe(fail, Metrics()))
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert "secret" not in answer.text


async def test_half_an_answer_is_cut() -> None:
    with pytest.raises(RuntimeError, match="late"):
        await call(Observe(fail_late, Metrics()))


async def test_answers_are_counted_by_route_and_status() -> None:
    metrics = Metrics()
    await call(Observe(read_all, metrics), "/whatever")
    assert b'tiller_requests_total{route="other",status="200"} 1.0' in metrics.render()

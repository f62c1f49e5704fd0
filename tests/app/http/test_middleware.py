"""Middleware: authentication, body limit, error responses, admission control, order of chat requests."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from app.errors import ErrorCode, QueueFull
from app.http.auth import Authenticate
from app.http.doorkeeper import Doorkeeper, ReserveCapacity, TakeTurns
from app.http.middleware import LimitBody, Observe
from app.limits.access_tokens import AccessTokenFile, AccessTokens
from app.limits.accounts import LocalAccounts
from app.limits.admission import AdmissionController
from app.routes.table import route_of
from app.settings import AccessToken, LimitSettings
from app.telemetry.metrics import Metrics
from app.telemetry.observation import Observation


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that reads the whole body and answers its length."""
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


async def leave(scope: Scope, receive: Receive, send: Send) -> None:
    raise ClientDisconnect


async def call(app: object, path: str = "/x", **options: object) -> httpx.Response:
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://tiller") as client:
        return await client.post(path, **options)  # type: ignore[arg-type]


def guarded_app(*tokens: str, open_metrics: bool = False) -> Authenticate:
    known = [AccessToken(name="x", sha256=hashlib.sha256(token.encode()).hexdigest()) for token in tokens]
    return Authenticate(read_all, AccessTokens(known, AccessTokenFile(Path("/none"))), open_metrics)


@pytest.mark.parametrize("header", ["Bearer one", "bearer two", "BEARER  one "])
async def test_any_configured_access_token_is_accepted(header: str) -> None:
    assert (await call(guarded_app("one", "two"), headers={"authorization": header})).status_code == 200


@pytest.mark.parametrize(
    "header", ["", "one", "Basic one", "Bearer", "Bearer ", "Bearer One", "Bearer one two"]
)
async def test_any_other_authorization_header_is_refused(header: str) -> None:
    answer = await call(guarded_app("one"), headers={"authorization": header})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(
    ("path", "status"),
    [(path, 200) for path in ("/live", "/ready", "/health", "/version", "/docs", "/openapi.json", "/")]
    + [(path, 401) for path in ("/metrics", "/nothing", "/healthy", "/health/", "/v12/health", "/v2/health")],
)
async def test_which_paths_are_open(prefix: str, path: str, status: int) -> None:
    assert (await call(guarded_app("one"), prefix + path)).status_code == status


async def test_metrics_can_be_opened() -> None:
    assert (await call(guarded_app("one", open_metrics=True), "/metrics")).status_code == 200


async def test_the_body_is_not_read_before_authentication() -> None:
    async def receive() -> Message:
        raise AssertionError("read")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await guarded_app("one")({"type": "http", "path": "/x", "headers": []}, receive, send)
    assert sent[0]["status"] == 401


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 10


def limited_app() -> Observe:
    return Observe(LimitBody(read_all, 100), Metrics(), route_of)


@pytest.mark.parametrize("content", [b"x" * 100, chunks(10)], ids=["announced", "chunked"])
async def test_a_body_up_to_the_limit_is_read(content: object) -> None:
    assert (await call(limited_app(), content=content)).text == "100"


@pytest.mark.parametrize("content", [b"x" * 101, chunks(11)], ids=["announced", "chunked"])
async def test_a_longer_body_is_refused(content: object) -> None:
    answer = await call(limited_app(), content=content)
    assert (answer.status_code, answer.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_an_exception_is_a_500_with_the_request_id() -> None:
    answer = await call(Observe(fail, Metrics(), route_of))
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert "secret" not in answer.text


async def test_an_exception_after_the_response_began_is_raised() -> None:
    with pytest.raises(RuntimeError, match="late"):
        await call(Observe(fail_late, Metrics(), route_of))


async def test_responses_are_counted_by_route_and_status() -> None:
    metrics = Metrics()
    for path in ("/whatever", "/v1/health"):
        await call(Observe(read_all, metrics, route_of), path)
    for route in (b"other", b"/health"):
        assert b'tiller_requests_total{route="%b",status="200"} 1.0' % route in metrics.render()


async def test_a_refusal_by_the_connection_is_recorded_instead_of_the_apps_answer() -> None:
    """The connection has written its answer, and the app only sees a disconnect."""
    metrics, seen = Metrics(), list[Observation]()
    app = Observe(leave, metrics, route_of, [seen.append])
    await call(app, "/chat/completions")
    scope = {"type": "http", "method": "POST", "path": "/tokenize", "headers": []}

    async def ignore(message: Message) -> None:
        pass

    await app({**scope, "state": {"refusal": ErrorCode.REQUEST_TIMEOUT}}, _nothing, ignore)
    assert [(one.route, one.status, one.error) for one in seen] == [
        ("/chat/completions", 499, None),
        ("/tokenize", 408, "REQUEST_TIMEOUT"),
    ]
    for line in (b'route="/chat/completions",status="499"', b'route="/tokenize",status="408"'):
        assert b"tiller_requests_total{%b} 1.0" % line in metrics.render()


class Engine:
    def __init__(self, room: int) -> None:
        self.capacity = self.free_capacity = room
        self.available = True


def admission(engine: Engine) -> AdmissionController:
    return AdmissionController(lambda: [engine], LocalAccounts(LimitSettings()))  # type: ignore[list-item]


@pytest.mark.parametrize("target", [b"/chat/completions", b"/v1/chat/completions?nice=true"])
async def test_the_doorkeeper_refuses_and_counts_a_chat_without_capacity(target: bytes) -> None:
    engine, metrics = Engine(room=1), Metrics()
    observations: list[Observation] = []
    door = Doorkeeper(admission(engine), metrics, has_origins=False, observers=[observations.append])
    assert door.refuse(b"POST", target, []) is None
    engine.free_capacity = 0
    head, _, body = (door.refuse(b"POST", target, []) or b"").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    for name in (b"Retry-After", b"x-request-id", b"x-content-type-options"):
        assert head.count(b"\r\n" + name + b": ") == 1
    assert b'"code":"QUEUE_FULL"' in body
    engine.available = False
    assert b'"code":"UNAVAILABLE"' in (door.refuse(b"POST", target, []) or b"")
    assert observations == []
    await asyncio.sleep(0)
    assert b'tiller_requests_total{route="/chat/completions",status="503"} 2.0' in metrics.render()
    assert [(observation.route, observation.status, observation.error) for observation in observations] == [
        ("/chat/completions", 503, "QUEUE_FULL"),
        ("/chat/completions", 503, "UNAVAILABLE"),
    ]


@pytest.mark.parametrize(
    ("method", "target"),
    [(b"GET", b"/health"), (b"GET", b"/chat/completions"), (b"POST", b"/chat/completions/"), (b"POST", b"*")],
)
def test_the_doorkeeper_refuses_no_other_requests(method: bytes, target: bytes) -> None:
    door = Doorkeeper(admission(Engine(room=0)), Metrics(), has_origins=False)
    assert door.refuse(method, target, []) is None


async def test_the_doorkeeper_leaves_cross_origin_requests_to_the_app() -> None:
    door = Doorkeeper(admission(Engine(room=0)), Metrics(), has_origins=True)
    assert door.refuse(b"POST", b"/chat/completions", [(b"origin", b"https://example.org")]) is None
    assert door.refuse(b"POST", b"/chat/completions", [(b"host", b"x")])


@pytest.mark.parametrize("status", [200, 401])
async def test_a_reservation_of_the_doorkeeper_is_released_however_the_request_ends(status: int) -> None:
    """Requests that arrive together count against the capacity before the app sees any of them."""
    engine = Engine(room=2)
    admits = admission(engine)
    door = Doorkeeper(admits, Metrics(), has_origins=False)
    app = ReserveCapacity(guarded_app("one"), admits)
    header = [(b"authorization", b"Bearer one")] if status == 200 else []
    scope = {"type": "http", "method": "POST", "path": "/chat/completions", "headers": header, "state": {}}
    scopes = [{**scope, "state": {}} for _ in range(2)]
    for one in scopes:
        door.accept(one)  # type: ignore[arg-type]
    assert door.refuse(b"POST", b"/chat/completions", [])
    sent: list[Message] = []

    async def receive() -> Message:
        with pytest.raises(QueueFull):
            admits.check_any()
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scopes[0], receive, send)
    assert sent[0]["status"] == status
    admits.check_any()
    await app(scopes[1], receive if status == 401 else _nothing, send)
    admits.assign(engine, 2)  # type: ignore[arg-type]


async def _nothing() -> Message:
    return {"type": "http.request", "body": b""}


async def test_other_tasks_run_between_the_starts_of_two_chats() -> None:
    """This also holds if one of the waiting requests is cancelled."""
    begun: list[int] = []
    turns = 0

    async def begin(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(turns)

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    app = TakeTurns(begin)
    chat = {"type": "http", "method": "POST", "path": "/chat/completions"}
    running = asyncio.create_task(other())
    tasks = [asyncio.create_task(app(chat, None, None)) for _ in range(20)]  # type: ignore[arg-type]
    tasks[5].cancel()
    await asyncio.wait(tasks)
    assert len(begun) == 19
    assert len(set(begun)) >= 18
    await app({**chat, "path": "/health"}, None, None)  # type: ignore[arg-type]
    running.cancel()

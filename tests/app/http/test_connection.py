"""A connection's limits: size of the head, time for head and body, number of connections."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn._types import HTTPScope

from app.errors import ErrorCode, QueueFull
from app.http.connection import Headers, connections_with
from app.http.errors import raw_error
from app.settings import ServerSettings
from tests.app.contract.support import assert_error_payload, until

PATIENT = {"header_seconds": 30, "body_seconds": 30}


class App:
    """Reads the body, answers its length, and counts the clients that disconnect before its end."""

    def __init__(self) -> None:
        self.left = 0
        self.refusals: list[tuple[str, str, int]] = []
        """Method, path and status of the requests that were refused before the app."""
        self.seen_refusals: list[ErrorCode | None] = []
        """For each request that the app has seen: its refusal by the connection."""
        self.fault: Exception | None = None
        """Raised by `refuse` for POST /refuse, and by `accept` for POST /accept."""
        self.is_full = False
        self.go_on = asyncio.Event()
        self.go_on.set()

    def is_probe(self, method: bytes, target: bytes) -> bool:
        return (method, target) == (b"GET", b"/live")

    def refuse(self, method: bytes, target: bytes, headers: Headers) -> bytes | None:
        """Refuses POST /chat while `is_full`."""
        assert all(name == name.lower() for name, _ in headers)
        if self.fault and target == b"/refuse":
            raise self.fault
        if (method, target) == (b"POST", b"/chat?nice=true") and self.is_full:
            return raw_error(QueueFull(), {"x-own": "1"})
        return None

    def accept(self, scope: HTTPScope) -> None:
        if self.fault and scope["path"] == "/accept":
            raise self.fault
        scope["state"]["let in"] = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length, more = 0, scope["path"] != "/unread"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                self.seen_refusals.append(scope["state"].get("refusal"))
                return
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await self.go_on.wait()
        await send({"type": "http.response.body", "body": str(length).encode()})


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *parts: bytes, pause: float = 0) -> None:
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()
            await asyncio.sleep(pause)

    @asynccontextmanager
    async def dribbling(self, data: bytes) -> AsyncIterator[None]:
        """Keeps sending `data` within the block, more often than any time limit of these tests."""

        async def dribble() -> None:
            with suppress(ConnectionError):
                while True:
                    await self.send(data, pause=0.02)

        task = asyncio.create_task(dribble())
        yield
        task.cancel()

    def leave(self) -> None:
        self._writer.close()

    async def read(self) -> bytes:
        """Everything that arrives until the server closes the connection."""
        async with asyncio.timeout(10):
            return await self._reader.read()

    async def read_until(self, end: bytes) -> bytes:
        async with asyncio.timeout(10):
            return await self._reader.readuntil(end)


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def connect(app: App) -> AsyncIterator[Callable[..., Any]]:
    """`await connect(max_headers=3)` returns a client of a server with these limits."""
    async with AsyncExitStack() as stack:

        async def start(**limits: float) -> Client:
            port = await stack.enter_async_context(serving(app, ServerSettings(**(PATIENT | limits))))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            return Client(reader, writer)

        yield start


@asynccontextmanager
async def serving(app: App, limits: ServerSettings, max_excess: int = 256) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app,
            http=connections_with(limits, lambda *refused: app.refusals.append(refused), app, max_excess),
            log_level="critical",
            ws="none",
            lifespan="off",
            timeout_keep_alive=limits.keepalive_seconds,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


def post(*headers: str, path: str = "/", body: str = "") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: tiller", *headers, "", body]
    return "\r\n".join(lines).encode()


def assert_refused(answer: bytes, status: int, code: str, *words: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert lines[0].startswith(f"http/1.1 {status} "), answer
    assert "content-type: application/json" in lines
    assert f"content-length: {len(body)}" in lines
    assert "connection: close" in lines
    assert_error_payload(body, code, *words)


@pytest.mark.parametrize("header", ["X: y", "Connection: keep-alive"])
async def test_http_1_0_gets_no_chunks(connect: Callable[..., Any], header: str) -> None:
    client = await connect()
    await client.send(post(header, "Content-Length: 5", body="hello").replace(b"HTTP/1.1", b"HTTP/1.0"))
    head, _, body = (await client.read()).partition(b"\r\n\r\n")
    assert body == b"5"
    assert head.lower().count(b"connection:") == head.lower().count(b"connection: close") == 1
    assert b"transfer-encoding" not in head.lower()


async def test_requests_within_the_limits_are_served(connect: Callable[..., Any]) -> None:
    client = await connect(max_headers=4, max_header_bytes=300)
    for _ in range(3):
        request = post("Content-Length: 5", "X-Filling: " + "x" * 200, "X-Last: 1", body="hello")
        await client.send(request[:100], request[100:250], request[250:])
        assert (await client.read_until(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("piece", [50, 1000, 10**6])
async def test_a_header_that_is_too_large_is_refused_however_it_is_split(
    connect: Callable[..., Any], app: App, piece: int
) -> None:
    client = await connect(max_header_bytes=1000)
    request = post("Content-Length: 0", "X-Large: " + "x" * 1000)
    await client.send(*(request[start : start + piece] for start in range(0, len(request), piece)))
    assert_refused(await client.read(), 431, "HEADERS_TOO_LARGE", "1000")


async def test_a_target_that_is_too_long_is_refused(connect: Callable[..., Any]) -> None:
    client = await connect(max_header_bytes=1000)
    await client.send(post("Content-Length: 0", path="/" + "x" * 1000))
    assert_refused(await client.read(), 431, "HEADERS_TOO_LARGE")


async def test_an_endless_header_is_refused_long_before_it_fills_the_memory(
    connect: Callable[..., Any],
) -> None:
    client = await connect(max_body_bytes=2**20)
    await client.send(post()[:-4], b"\r\nX-Endless: ")
    with pytest.raises(ConnectionError):
        await client.send(*[b"x" * 2**16] * 1000)


async def test_too_many_headers_are_refused(connect: Callable[..., Any]) -> None:
    client = await connect()
    await client.send(post("Content-Length: 0", *(f"X-{number}: 1" for number in range(10_000))))
    assert_refused(await client.read(), 431, "HEADERS_TOO_LARGE", "100")


async def test_trailers_are_limited(connect: Callable[..., Any]) -> None:
    client = await connect(max_header_bytes=1000)
    await client.send(post("Transfer-Encoding: chunked"), b"1\r\nx\r\n0\r\nX-Trailer: ")
    await client.send(*[b"x" * 100] * 20, pause=0.005)
    assert_refused(await client.read(), 431, "HEADERS_TOO_LARGE")


async def test_a_long_body_in_small_chunks_does_not_count_as_headers(connect: Callable[..., Any]) -> None:
    client = await connect(max_header_bytes=200)
    await client.send(post("Transfer-Encoding: chunked", "Connection: close"))
    for _ in range(100):
        await client.send(b"1\r\n", b"x\r\n")
    await client.send(b"0\r\n\r\n")
    assert b"100\r\n" in await client.read()


async def test_the_size_of_a_head_does_not_include_the_body_before_it(
    connect: Callable[..., Any],
) -> None:
    client = await connect(max_header_bytes=1000)
    await client.send(post("Content-Length: 5000"), b"x" * 5000 + post("Content-Length: 0")[:10])
    assert (await client.read_until(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await client.send(post("Content-Length: 0", "Connection: close")[10:])
    assert (await client.read()).startswith(b"HTTP/1.1 200")


async def test_slow_headers_are_answered_with_408(connect: Callable[..., Any]) -> None:
    client = await connect(header_seconds=1)
    await client.send(b"GET / HTTP/1.1\r\nX-Slow: ")
    async with client.dribbling(b"x"):
        assert_refused(await client.read(), 408, "REQUEST_TIMEOUT", "headers", "1 seconds")


async def test_a_client_that_sends_nothing_is_disconnected(connect: Callable[..., Any]) -> None:
    client = await connect(header_seconds=0.2)
    assert await client.read() == b""


async def test_empty_lines_do_not_keep_a_connection_open(connect: Callable[..., Any]) -> None:
    client = await connect(header_seconds=0.3)
    async with client.dribbling(b"\r\n"):
        assert await client.read() == b""


@pytest.mark.parametrize("is_full", [False, True])
async def test_a_connection_may_be_idle_between_requests(
    connect: Callable[..., Any], app: App, is_full: bool
) -> None:
    app.is_full = is_full
    client = await connect(header_seconds=0.1, keepalive_seconds=1)
    request = b"POST /chat?nice=true HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    for _ in range(3):
        await client.send(request, pause=0.5)
        await client.send(b"\r\n", pause=0.1)
    assert (await client.read()).count(b"HTTP/1.1 503" if is_full else b"HTTP/1.1 200") == 3


@pytest.mark.parametrize("length", ["Content-Length: 10000", "Transfer-Encoding: chunked"])
async def test_a_body_that_does_not_arrive_is_answered_with_408(
    connect: Callable[..., Any], app: App, length: str
) -> None:
    client = await connect(body_seconds=0.3)
    await client.send(post(length))
    assert_refused(await client.read(), 408, "REQUEST_TIMEOUT", "body", "0.3")
    await until(lambda: app.left == 1)
    assert (app.seen_refusals, app.refusals) == ([ErrorCode.REQUEST_TIMEOUT], [])


async def test_a_slow_body_is_answered_with_408(connect: Callable[..., Any], app: App) -> None:
    client = await connect(body_seconds=0.3)
    await client.send(post("Content-Length: 1000"))
    async with client.dribbling(b"x"):
        assert_refused(await client.read(), 408, "REQUEST_TIMEOUT")
    await until(lambda: app.left == 1)


async def test_a_slow_body_within_the_time_limit_is_read(connect: Callable[..., Any]) -> None:
    client = await connect(header_seconds=0.2, body_seconds=20)
    await client.send(post("Content-Length: 10", "Connection: close"))
    await client.send(*[b"x"] * 10, pause=0.05)
    assert b"10\r\n" in await client.read()


async def test_an_unread_body_that_does_not_arrive_ends_the_connection(connect: Callable[..., Any]) -> None:
    client = await connect(body_seconds=0.3)
    await client.send(post("Content-Length: 1000", path="/unread"))
    assert (await client.read_until(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")
    async with client.dribbling(b"x"):
        with suppress(ConnectionResetError):  # The server may close while the client still sends.
            assert await client.read() == b""


async def test_the_time_limits_do_not_apply_to_responses(connect: Callable[..., Any], app: App) -> None:
    app.go_on.clear()
    client = await connect(header_seconds=1, body_seconds=1)
    await client.send(post("Content-Length: 0"), b"GE")
    await asyncio.sleep(1.5)
    app.go_on.set()
    answer = await client.read_until(b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n1\r\n0\r\n0\r\n\r\n")
    assert_refused(await client.read(), 408, "REQUEST_TIMEOUT", "headers")


@pytest.mark.parametrize("raw", [b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00"])
async def test_bytes_that_are_not_http_get_the_contracts_error(
    connect: Callable[..., Any], raw: bytes
) -> None:
    client = await connect()
    await client.send(raw)
    assert_refused(await client.read(), 400, "INVALID_REQUEST", "HTTP")


@pytest.mark.parametrize("path", ["/refuse", "/accept"])
async def test_a_fault_of_ours_is_a_500_with_a_traceback_in_the_log(
    connect: Callable[..., Any], app: App, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    app.fault = RuntimeError("/secret/path")
    client = await connect()
    await client.send(post("Content-Length: 1", path=path, body="x"))
    answer = await client.read()
    assert_refused(answer, 500, "INTERNAL", "internal error")
    assert b"secret" not in answer
    [record] = [record for record in caplog.records if record.exc_info]
    assert record.exc_info[1] is app.fault
    assert record.args["request_id"] in answer.decode()
    assert app.refusals == ([("POST", path, 500)] if path == "/refuse" else [])
    app.fault = None
    client = await connect()
    await client.send(post("Content-Length: 0", "Connection: close", path=path))
    assert (await client.read()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("target", [b"/\xff", b"http://[", b"/%ff?\xff", b"//:x@:0/"])
async def test_an_invalid_target_is_no_fault_of_ours(
    connect: Callable[..., Any], target: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    client = await connect()
    await client.send(b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target)
    assert (await client.read())[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 200 ")
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_refused_request_is_reported_with_its_method_and_path(
    connect: Callable[..., Any], app: App
) -> None:
    client = await connect(max_headers=3)
    await client.send(b"DELETE /a%20b?c HTTP/1.1\r\n" + b"X: y\r\n" * 4 + b"\r\n")
    assert_refused(await client.read(), 431, "HEADERS_TOO_LARGE")
    client = await connect(header_seconds=0.1)
    await client.send(b"DELETE /a HTTP/1.1\r\nX: ")
    assert_refused(await client.read(), 408, "REQUEST_TIMEOUT")
    assert app.refusals == [("DELETE", "/a b", 431), ("-", "", 408)]


async def test_invalid_bytes_after_a_request_do_not_corrupt_its_response(
    connect: Callable[..., Any], app: App
) -> None:
    app.go_on.clear()
    client = await connect()
    await client.send(post("Content-Length: 0"))
    await client.read_until(b"\r\n\r\n")
    await client.send(b"nonsense\r\n\r\n")
    assert await client.read() == b""
    app.go_on.set()


async def test_a_malformed_body_is_an_error_and_the_app_sees_a_disconnect(
    connect: Callable[..., Any], app: App
) -> None:
    client = await connect()
    await client.send(post("Transfer-Encoding: chunked"))
    await client.send(b"zzz\r\n", pause=0.05)
    assert_refused(await client.read(), 400, "INVALID_REQUEST")
    await until(lambda: app.left == 1)


@pytest.mark.parametrize("is_full", [False, True], ids=["by the app", "before the app"])
@pytest.mark.parametrize("rest", [b"ZZ\r\n", b"0\r\n" + b"A: b\r\n" * 20], ids=["chunk", "trailers"])
async def test_a_fault_in_the_body_of_an_answered_request_only_closes_the_connection(
    connect: Callable[..., Any], app: App, is_full: bool, rest: bytes
) -> None:
    app.is_full = is_full
    client = await connect(max_headers=10, max_header_bytes=100)
    await client.send(post("Transfer-Encoding: chunked", path="/chat?nice=true" if is_full else "/unread"))
    answer = await client.read_until(b"\r\n0\r\n\r\n" if not is_full else b'},"code":"QUEUE_FULL"}')
    assert answer.startswith(b"HTTP/1.1 503 " if is_full else b"HTTP/1.1 200 ")
    await client.send(rest, pause=0.05)
    await client.send(b"B: c\r\n" * 20)
    assert await client.read() == b""
    assert app.refusals == []


async def test_a_fault_in_the_request_after_an_answered_one_is_answered(
    connect: Callable[..., Any], app: App
) -> None:
    client = await connect()
    await client.send(post("Content-Length: 1", body="x"))
    await client.read_until(b"\r\n0\r\n\r\n")
    app.fault = RuntimeError()
    await client.send(post("Content-Length: 1", path="/refuse", body="x"))
    assert_refused(await client.read(), 500, "INTERNAL")
    client = await connect()
    await client.send(post("Content-Length: 1", body="x"))
    await client.read_until(b"\r\n0\r\n\r\n")
    await client.send(b"POST http://[ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
    assert_refused(await client.read(), 400, "INVALID_REQUEST")


async def test_an_error_does_not_quote_the_request(connect: Callable[..., Any]) -> None:
    client = await connect()
    await client.send(b"secret-token: " + b"s" * 100 + b"\r\n\r\n")
    answer = await client.read()
    assert b"secret" not in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["param"] is None


UPGRADES = [
    ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
    ("Connection: Upgrade", "Upgrade: websocket"),
]


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("pause", [0, 0.02])
@pytest.mark.parametrize(
    ("framing", "body", "length"),
    [
        ("Content-Length: 12", b"DELETE / HTT", b"12"),
        ("Content-Length: 0", b"", b"0"),
        ("Transfer-Encoding: chunked", b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n", b"7"),
    ],
)
async def test_an_upgrade_request_is_answered_with_http_1_1(
    connect: Callable[..., Any],
    upgrade: tuple[str, ...],
    pause: float,
    framing: str,
    body: bytes,
    length: bytes,
) -> None:
    client = await connect()
    if pause:
        await client.send(post(*upgrade, framing), *(bytes([byte]) for byte in body), pause=pause)
    else:
        await client.send(post(*upgrade, framing) + body)
    answer = await client.read_until(b"\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(length), length))


async def test_the_body_of_an_upgrade_request_is_not_read_as_a_request(connect: Callable[..., Any]) -> None:
    client = await connect()
    hidden = post("Content-Length: 0")
    await client.send(post(*UPGRADES[0], f"Content-Length: {len(hidden)}"), hidden, pause=0.05)
    answer = await client.read()
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"%d\r\n0\r\n\r\n" % len(hidden) in answer


async def test_the_body_of_an_upgrade_request_has_a_time_limit(connect: Callable[..., Any]) -> None:
    client = await connect(body_seconds=0.3)
    await client.send(post(*UPGRADES[0], "Content-Length: 100"), b"x")
    assert_refused(await client.read(), 408, "REQUEST_TIMEOUT", "body")


async def full(connect: Callable[..., Any], app: App, **limits: float) -> Client:
    app.is_full = True
    return await connect(**limits)


def chat(*headers: str, body: str = "") -> bytes:
    return post(*headers, path="/chat?nice=true", body=body)


async def test_a_refused_chat_is_answered_before_its_body_arrives(
    connect: Callable[..., Any], app: App
) -> None:
    """The connection stays open for the next request, as if the app had answered."""
    client = await full(connect, app)
    for _ in range(2):
        await client.send(chat("Content-Length: 11"))
        head = await client.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nRetry-After: " in head
        assert b"\r\nx-own: 1\r\n" in head
        assert b"connection" not in head
        await client.read_until(b'},"code":"QUEUE_FULL"}')
        await client.send(b"hello ", b"world")
    await client.send(chat("Transfer-Encoding: chunked"), b"5\r\nhello\r\n0\r\n\r\n")
    await client.read_until(b'},"code":"QUEUE_FULL"}')
    await client.send(post("Content-Length: 5", body="other"))
    assert (await client.read_until(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
    app.is_full = False
    await client.send(chat("Content-Length: 5", body="hello"))
    assert (await client.read_until(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
    assert app.left == 0


@pytest.mark.parametrize(
    "headers", [["Connection: close"], ["Expect: 100-continue"], ["Connection: upgrade", "Upgrade: h2c"]]
)
async def test_requests_with_special_connection_headers_are_left_to_the_app(
    connect: Callable[..., Any], app: App, headers: list[str]
) -> None:
    client = await full(connect, app)
    await client.send(chat(*headers, "Content-Length: 5", body="hello"))
    assert b" 200 OK" in await client.read_until(b"0\r\n\r\n")


async def test_pipelined_requests_are_answered_in_order(connect: Callable[..., Any], app: App) -> None:
    client = await full(connect, app)
    app.go_on.clear()
    await client.send(post("Content-Length: 1", body="a") + chat("Content-Length: 2", body="bb"))
    await client.read_until(b"\r\n\r\n")
    app.go_on.set()
    answers = await client.read_until(b"0\r\n\r\n") + await client.read_until(b"0\r\n\r\n")
    assert b"503" not in answers


async def test_the_body_of_a_refused_chat_has_a_time_limit(connect: Callable[..., Any], app: App) -> None:
    client = await full(connect, app, body_seconds=0.2)
    await client.send(chat("Content-Length: 11", body="hello"))
    answer = await client.read()
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.endswith(b'},"code":"QUEUE_FULL"}')


async def test_connections_above_the_limit_get_a_503_and_later_ones_are_closed(app: App) -> None:
    async with AsyncExitStack() as stack:
        limits = ServerSettings(**PATIENT, max_connections=2)
        port = await stack.enter_async_context(serving(app, limits, max_excess=1))

        async def open_one() -> Client:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            return Client(reader, writer)

        async def ask(client: Client) -> bytes:
            await client.send(post("Content-Length: 5", body="hello"))
            return await client.read_until(b"0\r\n\r\n")

        served = [await open_one() for _ in range(2)]
        assert [b" 200 OK" in await ask(client) for client in served] == [True, True]
        excess = await open_one()
        await excess.send(post("Content-Length: 5", path="/chat", body="hello"))
        answer = await excess.read()
        assert_refused(answer, 503, "QUEUE_FULL", "too many connections")
        assert b"\r\nRetry-After: " in answer
        with suppress(ConnectionError):
            assert await (await open_one()).read() == b""
        assert app.refusals == [("POST", "/chat", 503), ("-", "", 503)]
        assert b" 200 OK" in await ask(served[0])
        for client in (served[1], excess):
            client.leave()
        await asyncio.sleep(0.05)
        assert b" 200 OK" in await ask(await open_one())


@pytest.fixture
async def excess(app: App) -> AsyncIterator[Client]:
    """A client whose connection is one more than the server's limit."""
    async with AsyncExitStack() as stack:
        limits = ServerSettings(**PATIENT, max_connections=1)
        port = await stack.enter_async_context(serving(app, limits))
        clients = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            stack.callback(writer.close)
            clients.append(Client(reader, writer))
        yield clients[1]


async def test_a_liveness_probe_is_answered_however_many_connections_there_are(
    excess: Client, app: App
) -> None:
    await excess.send(b"GET /live HTTP/1.1\r\nHost: tiller\r\nConnection: close\r\n\r\n")
    answer = await excess.read()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert app.refusals == []


async def test_the_connection_of_a_probe_is_closed_after_its_answer(excess: Client, app: App) -> None:
    await excess.send(b"GET /live HTTP/1.1\r\nHost: tiller\r\n\r\n")
    assert (await excess.read()).count(b"HTTP/1.1 ") == 1
    assert app.refusals == []


async def test_an_excess_connection_that_sends_nothing_is_refused_soon(excess: Client, app: App) -> None:
    assert_refused(await excess.read(), 503, "QUEUE_FULL", "too many connections")
    assert app.refusals == [("-", "", 503)]

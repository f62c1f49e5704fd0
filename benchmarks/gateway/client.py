"""A load client that needs little CPU time: it counts events and answers, but does not parse them."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self, cast

import httptools

_OK = 200
_EVENT_END = b"\n\n"


class LoadError(Exception):
    """The gateway did not answer as expected. The message is one line."""


class Connection(asyncio.Protocol):
    """Sends one request, and sends it again after each answer, until it is closed."""

    def __init__(self, request: bytes, on_events: Callable[[int], None]) -> None:
        """Calls `on_events` with the number of server-sent events that have just arrived."""
        self._request = request
        self._on_events = on_events
        self._parser = httptools.HttpResponseParser(self)
        self._ended_line = False
        self._closing = False
        self.begun = False
        """Whether an event has arrived."""
        self.answers = 0
        """Number of complete answers."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection has ended. A LoadError if the server closed it or refused a request."""

    def close(self) -> None:
        self._closing = True
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        if (status := self._parser.get_status_code()) != _OK:
            self._fail(f"the gateway answered with status {status}")

    def on_body(self, body: bytes) -> None:
        # The end of an event may be split between two pieces.
        split = self._ended_line and body.startswith(b"\n")
        self._ended_line = body.endswith(b"\n") and not body.endswith(_EVENT_END)
        if events := body.count(_EVENT_END) + split:
            self.begun = True
            self._on_events(events)

    def on_message_complete(self) -> None:
        self.answers += 1
        if not self._closing:
            self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closing and not self.ended.done():
            self.ended.set_result(None)
        else:
            self._fail("the gateway closed a connection" + (f": {exc}" if exc else ""))

    def _fail(self, message: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(LoadError(message))


class Connections:
    """Many connections that send the same request. The context closes them."""

    def __init__(self) -> None:
        self._all: list[Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._all:
            connection.close()
        for connection in self._all:
            with suppress(LoadError):
                await connection.ended

    async def open(
        self, port: int, count: int, request: bytes, on_events: Callable[[int], None] = lambda _: None
    ) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(count):
            _, connection = await loop.create_connection(
                lambda: Connection(request, on_events), "127.0.0.1", port
            )
            self._all.append(connection)

    @property
    def begun(self) -> int:
        return sum(connection.begun for connection in self._all)

    @property
    def answers(self) -> int:
        return sum(connection.answers for connection in self._all)

    async def watch(self, seconds: float) -> None:
        """Returns after `seconds`. Raises LoadError as soon as a connection fails."""
        ended = [connection.ended for connection in self._all]
        done, _ = await asyncio.wait(ended, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for future in done:
            future.result()


def http_request(path: str, body: bytes) -> bytes:
    """The bytes of a POST request with a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

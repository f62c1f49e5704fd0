"""One client's connection: how large a request's head may be, how long head and body may take, and how many
connections there may be.

uvicorn has no such limits, and answers what is no HTTP in plain text. What is refused here never becomes a
request, so the error is written by hand. Knows no routes.
"""

import asyncio
from collections.abc import Callable
from enum import StrEnum
from types import SimpleNamespace
from typing import Protocol

import httptools
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import ApiError, ErrorCode, InvalidRequest, QueueFull
from app.http.errors import STATUS, raw_error
from app.settings import ServerSettings

_VERSIONS = ("1.1", "1.0")  # The parser takes the request lines of others as well.

TOLD_CONNECTIONS = 256
"""Beyond those that there may be, so many are told so. Any more are cut without a word."""
_LINGER_SECONDS = 2.0
"""How long a refused client may go on sending: an answer is lost where the connection is reset at once."""


Headers = list[tuple[bytes, bytes]]
"""With names in lower case."""


class Door(Protocol):
    """Asked about each request before the app is."""

    def turn_away(self, method: bytes, target: bytes, headers: Headers) -> bytes | None:
        """The answer to a request that need not become one."""

    def let_in(self, scope: HTTPScope) -> None:
        """The request becomes one. The app, which is called soon, sees what this adds to the scope."""


class _Answered:
    """In the place of uvicorn's cycle, after a request that was answered here. Its body is dropped."""

    response_started = response_complete = keep_alive = True
    disconnected = False
    message_event = asyncio.Event()
    """Nobody waits for it."""


class _Part(StrEnum):
    """What of a request has begun and not ended. The values are for the message."""

    HEAD = "headers"
    BODY = "body"


class Connection(HttpToolsProtocol):
    """uvicorn's, with limits. `connections_with` sets its first attributes."""

    limits: ServerSettings
    count: Callable[[str, int], None]
    door: Door
    told: int

    _part: _Part | None = None
    _timer: asyncio.TimerHandle | None = None
    _fault: ApiError | None = None
    _refused = False
    _reading = 0
    """Bytes in the read that is being parsed."""
    _only_head = False
    """Nothing but a head that had begun before (or trailers) was in that read so far."""
    _head_at_least = 0
    _head_at_most = 0
    """Bytes of the head so far, as far as reads tell."""
    _body_is_left = False
    """The parser has ended a request without its body."""
    _discarded = 0
    """Bytes that came after the refusal."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        beyond = len(self.connections) - self.limits.max_connections
        if beyond > self.told:
            self._refused = True
            self.count("other", 503)
            transport.abort()
        elif beyond > 0:
            self._refuse(QueueFull("there are too many connections; try again later"))
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._discard(data)
            return
        self._reading = len(data)
        self._head_at_most += len(data)
        self._only_head = self._part is not None
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._only_head and self._part and not self._refused:
            self._head_at_least += len(data)
            if self._head_at_least > self.limits.max_header_bytes:
                self._refuse(self._too_large())
        self._watch()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._enter(_Part.HEAD)
        self._only_head = False
        self._head_at_least = 0
        self._head_at_most = self._reading

    def on_headers_complete(self) -> None:
        self._check_head()
        self._enter(_Part.BODY)
        is_plain = self._is_plain
        if is_plain and (answer := self.door.turn_away(self.parser.get_method(), self.url, self.headers)):
            self.cycle = _Answered()  # type: ignore[assignment]
            self.transport.write(answer)
            self.on_response_complete()
            return
        super().on_headers_complete()
        if is_plain:
            self.door.let_in(self.scope)
        self._body_is_left = self.parser.should_upgrade() and bool(self._framing())

    def on_chunk_header(self) -> None:
        self._only_head = False

    def on_body(self, body: bytes) -> None:
        self._only_head = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._body_is_left:
            return
        self._enter(None)
        super().on_message_complete()

    @property
    def _is_plain(self) -> bool:
        """Whether the request can be answered at once, and its connection used again."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
            and not self.expect_100_continue
        )

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:  # by itself, or by an error of ours
            self._refuse(self._fault or InvalidRequest("this is not HTTP/1.1"))
        except httptools.HttpParserUpgrade as upgrade:
            self._decline(data[upgrade.args[0] :])

    def _decline(self, rest: bytes) -> None:
        """Who asks for another protocol gets this one. Java's client asks for HTTP/2 with its first request.

        The parser takes what follows for that protocol's, were it a body. So another one reads that.
        """
        if not self._body_is_left:
            return
        self._body_is_left = False
        self.cycle.keep_alive = False
        reader = SimpleNamespace(
            on_body=self.on_body,
            on_chunk_header=self.on_chunk_header,
            on_message_complete=self.on_message_complete,
        )
        self.parser = httptools.HttpRequestParser(reader)
        self._parse(b"POST / HTTP/1.1\r\n" + self._framing() + b"\r\n" + rest)

    def _framing(self) -> bytes:
        """The headers that say that there is a body."""
        framing = (b"content-length", b"transfer-encoding")
        return b"".join(b"%b: %b\r\n" % header for header in self.headers if header[0] in framing)

    def _check_head(self) -> None:
        if self.parser.get_http_version() not in _VERSIONS:
            raise httptools.HttpParserError
        size = 0
        if self._head_at_most > self.limits.max_header_bytes:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self.limits.max_header_bytes or len(self.headers) > self.limits.max_headers:
            self._fault = self._too_large()
            raise self._fault

    def _too_large(self) -> ApiError:
        limits = self.limits
        rule = (
            f"there must be at most {limits.max_headers} headers, of {limits.max_header_bytes} bytes in all"
        )
        return ApiError(ErrorCode.HEADERS_TOO_LARGE, rule)

    def _enter(self, part: _Part | None) -> None:
        self._part = part
        self._stop_watching()

    def _watch(self) -> None:
        """Sees to it that what has begun ends. A connection that has sent nothing yet has begun, too."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._timer or self._refused or (self._part is None and answering):
            return
        self._timer = self.loop.call_later(self._seconds, self._expire)

    def _stop_watching(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    @property
    def _seconds(self) -> float:
        if self._part is None and self.cycle is not None:
            return self.limits.keepalive_seconds
        return self.limits.body_seconds if self._part is _Part.BODY else self.limits.header_seconds

    def _expire(self) -> None:
        self._timer = None
        if self.flow.read_paused or self._is_busy:
            self._watch()
        elif self._part is None or (self.cycle and self._part is _Part.BODY and self.cycle.response_complete):
            self.transport.close()
        else:
            message = f"the {self._part} did not arrive within {self._seconds:g} seconds"
            self._refuse(ApiError(ErrorCode.REQUEST_TIMEOUT, message))

    @property
    def _is_busy(self) -> bool:
        """Whether an answer is on its way that another would break."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        return self._part is not _Part.BODY or bool(self.pipeline) or self.cycle.response_started

    def _refuse(self, error: ApiError) -> None:
        """Answers in place of the app, which finds its client gone."""
        self._refused = True
        self.count("other", STATUS[error.code])
        self._stop_watching()
        if self._is_busy:
            self.transport.close()
            return
        if self.cycle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(raw_error(error, {"connection": "close"}))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > self.limits.max_body_bytes:
            self.transport.close()


def connections_with(
    limits: ServerSettings,
    count: Callable[[str, int], None],
    door: Door,
    told: int = TOLD_CONNECTIONS,
) -> type[Connection]:
    """For uvicorn, which makes a protocol of its own for each connection.

    `count` is told of this module's own refusals, as Metrics.count_request is.
    """

    class LimitedConnection(Connection):
        pass

    LimitedConnection.limits = limits
    LimitedConnection.count = staticmethod(count)
    LimitedConnection.door = door
    LimitedConnection.told = told
    return LimitedConnection

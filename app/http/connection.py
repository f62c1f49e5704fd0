"""One client's connection. Limits the size of a request's head (its request line and headers), the time for
head and body, and the number of connections.

uvicorn has no such limits, and it answers invalid HTTP in plain text. A request that is refused here never
reaches the app, so this module writes the error response itself. Knows no routes.
"""

import asyncio
import uuid
from collections.abc import Callable
from enum import StrEnum
from types import SimpleNamespace
from typing import Protocol
from urllib.parse import unquote

import httptools
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import ApiError, ErrorCode, InvalidRequest, QueueFull
from app.http.errors import STATUS, for_caller, raw_error
from app.http.unchunked import without_chunks
from app.settings import ServerSettings

_VERSIONS = ("1.1", "1.0")  # The parser also accepts other versions.

MAX_EXCESS_CONNECTIONS = 256
"""This many connections above `max_connections` get a 503, unless they are for probes. Further ones are
closed without a response."""
_EXCESS_SECONDS = 1.0
"""How long such a connection may wait for the headers of a request before it gets the 503."""
_LINGER_SECONDS = 2.0
"""How long a refused client may go on sending. If the connection were closed at once, the client's system
would reset it and could lose the response."""


Headers = list[tuple[bytes, bytes]]
"""Pairs of name and value. The names are in lower case."""


class Door(Protocol):
    """Decides about each request before the app is called."""

    def is_probe(self, method: bytes, target: bytes) -> bool:
        """Whether the request is answered even if there are too many connections."""

    def refuse(self, method: bytes, target: bytes, headers: Headers) -> bytes | None:
        """The whole HTTP response to a request that is refused; None if the app is to answer."""

    def accept(self, scope: HTTPScope) -> None:
        """Called for a request that was not turned away, just before the app. May add to the app's scope."""


class _Answered:
    """Takes the place of uvicorn's cycle after a request that was answered here. Drops the request's body."""

    response_started = response_complete = keep_alive = True
    disconnected = False
    message_event = asyncio.Event()
    """uvicorn sets it; nothing waits for it."""


class _Part(StrEnum):
    """The part of a request that is arriving now. The values appear in error messages."""

    HEAD = "headers"
    BODY = "body"


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits. `connections_with` sets the first four attributes."""

    limits: ServerSettings
    count: Callable[[str, str, int], None]
    door: Door
    max_excess: int

    _is_excess = False
    """The connection is above `max_connections`."""
    _part: _Part | None = None
    _timer: asyncio.TimerHandle | None = None
    _method: bytes | None = None
    """The method of the request that is arriving. None until its headers are complete."""
    _refused = False
    _reading = 0
    """Size of the read that is being parsed, in bytes."""
    _only_head = False
    """So far, that read holds only bytes of a head that began in an earlier read, or of trailers."""
    _head_at_least = 0
    """Lower bound of the head's size so far, in bytes: the reads that hold nothing else."""
    _head_at_most = 0
    """Upper bound of the head's size so far, in bytes: all reads since the one in which the head began."""
    _body_is_left = False
    """The parser has completed a request before its body, because the request asks for an upgrade."""
    _discarded = 0
    """Bytes received after the refusal."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        excess = len(self.connections) - self.limits.max_connections
        if excess > self.max_excess:
            self._refused = True
            self.count("-", "", 503)
            transport.abort()
        else:
            self._is_excess = excess > 0
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
        self._method = None
        self._only_head = False
        self._head_at_least = 0
        self._head_at_most = self._reading

    def on_headers_complete(self) -> None:
        self._method = self.parser.get_method()
        self._check_head()
        if self._is_excess and not self.door.is_probe(self._method, self.url):
            raise _too_many_connections()
        is_plain = self._is_plain
        if is_plain and (answer := self.door.refuse(self._method, self.url, self.headers)):
            self.cycle = _Answered()  # type: ignore[assignment]
            self._enter(_Part.BODY)
            self.transport.write(answer)
            self.on_response_complete()
            return
        super().on_headers_complete()
        self._enter(_Part.BODY)  # Not earlier: until here, `cycle` is that of the request before.
        if self._is_excess:
            self.cycle.keep_alive = False
        if self.parser.get_http_version() == "1.0":
            self.cycle.send = without_chunks(self.cycle)  # type: ignore[method-assign, assignment]
        if is_plain:
            self.door.accept(self.scope)
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
        self._method = None
        super().on_message_complete()

    @property
    def _is_plain(self) -> bool:
        """Whether the request can be answered at once, with the connection kept open for the next request."""
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
        except httptools.HttpParserError as error:
            self._refuse(_reported(error))
        except httptools.HttpParserUpgrade as upgrade:
            self._decline(data[upgrade.args[0] :])

    def _decline(self, rest: bytes) -> None:
        """Answers a protocol upgrade request with HTTP/1.1. Java's HTTP client asks for HTTP/2 this way.

        The parser assumes that all bytes after the head belong to the new protocol, even if the request has
        a body. So a second parser reads the body. `rest` is the part of the read that follows the head.
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
        """The header lines that announce a body: Content-Length and Transfer-Encoding."""
        framing = (b"content-length", b"transfer-encoding")
        return b"".join(b"%b: %b\r\n" % header for header in self.headers if header[0] in framing)

    def _check_head(self) -> None:
        if self.parser.get_http_version() not in _VERSIONS:
            raise httptools.HttpParserError
        size = 0
        if self._head_at_most > self.limits.max_header_bytes:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self.limits.max_header_bytes or len(self.headers) > self.limits.max_headers:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        limits = self.limits
        rule = (
            f"a request must have at most {limits.max_headers} headers, "
            f"and its target and headers at most {limits.max_header_bytes} bytes together"
        )
        return ApiError(ErrorCode.HEADERS_TOO_LARGE, rule)

    def _enter(self, part: _Part | None) -> None:
        self._part = part
        self._stop_watching()

    def _watch(self) -> None:
        """Starts the timer for the part of a request that is arriving, or for the time between requests.

        The first head's timer starts with the connection, before the client has sent anything.
        """
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
        if self._is_excess and self._part is not _Part.BODY:
            return min(_EXCESS_SECONDS, self.limits.header_seconds)
        if self._part is None and self.cycle is not None:
            return self.limits.keepalive_seconds
        return self.limits.body_seconds if self._part is _Part.BODY else self.limits.header_seconds

    def _expire(self) -> None:
        self._timer = None
        if self.flow.read_paused or self._is_busy:
            self._watch()
        elif self._is_excess and self.cycle is None:
            self._refuse(_too_many_connections())
        elif self._part is None or self._is_answered:
            self.transport.close()
        else:
            message = f"the {self._part} did not arrive within {self._seconds:g} seconds"
            self._refuse(ApiError(ErrorCode.REQUEST_TIMEOUT, message))

    @property
    def _is_answered(self) -> bool:
        """Whether the request whose body is arriving has its whole response already."""
        return self._part is _Part.BODY and self.cycle is not None and self.cycle.response_complete

    @property
    def _is_busy(self) -> bool:
        """Whether a response is being made or sent, so that an error written now would corrupt it."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        return self._part is not _Part.BODY or bool(self.pipeline) or self.cycle.response_started

    def _refuse(self, error: ApiError) -> None:
        """Writes the error, unless a response has begun or is complete, and closes the connection.

        If the app has the request already, it sees a disconnect, and finds the error's code as `refusal` in
        the request's state. Else nobody but this module knows of the request, so it counts the refusal here.
        """
        self._refused = True
        self._stop_watching()
        if self._is_answered:
            self._hang_up()
            return
        is_busy, app_has_request = self._is_busy, self.cycle is not None and not self.cycle.response_complete
        if is_busy or not app_has_request:
            self.count(*self._arriving, STATUS[error.code])
        if is_busy:
            self.transport.close()
            return
        if app_has_request:
            self.scope["state"]["refusal"] = error.code
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(raw_error(error, {"connection": "close"}))
        self._hang_up()

    def _hang_up(self) -> None:
        """Sends nothing more. Closes the connection when the client has had time to read the response."""
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    @property
    def _arriving(self) -> tuple[str, str]:
        """Method and path of the request that is arriving; "-" and "" until its headers are complete."""
        if self._method is None:
            return "-", ""
        return self._method.decode(), unquote(self.url.partition(b"?")[0].decode("latin-1"))

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > self.limits.max_body_bytes:
            self.transport.close()


def _too_many_connections() -> ApiError:
    return QueueFull("too many connections are open; try again later")


def _reported(error: httptools.HttpParserError) -> ApiError:
    """The error for a request that the parser has given up.

    If a callback raises, the parser raises an error of its own, with the callback's exception as its context.
    Callbacks raise HttpParserError or UnicodeError for invalid requests. Any other exception is our fault.
    """
    cause = error.__context__
    if isinstance(cause, Exception) and not isinstance(cause, httptools.HttpParserError | UnicodeError):
        return for_caller(cause, uuid.uuid4().hex)
    return InvalidRequest("the request is not valid HTTP/1.1")


def connections_with(
    limits: ServerSettings,
    count: Callable[[str, str, int], None],
    door: Door,
    max_excess: int = MAX_EXCESS_CONNECTIONS,
) -> type[Connection]:
    """The protocol class for uvicorn, which creates one instance for each connection.

    `count` is called with method, path and status for each request that this module refuses and the app does
    not know. If the request's headers are incomplete, method and path are "-" and "".
    """

    class LimitedConnection(Connection):
        pass

    LimitedConnection.limits = limits
    LimitedConnection.count = staticmethod(count)
    LimitedConnection.door = door
    LimitedConnection.max_excess = max_excess
    return LimitedConnection

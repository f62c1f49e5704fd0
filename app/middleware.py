"""What holds for every request: an id, a count, a limit of the body, an answer even to a fault of ours."""

import asyncio
import uuid
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers as HeadersView
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn._types import HTTPScope

from app.admission import Admission
from app.auth import unversioned
from app.connection import Headers
from app.errors import CLIENT_CLOSED_REQUEST, ApiError, ErrorCode, for_caller
from app.metrics import Metrics

_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
_RAW_SECURITY_HEADERS = [(name.encode(), value.encode()) for name, value in _SECURITY_HEADERS.items()]


class AnswerHead:
    """ASGI middleware: HEAD is GET without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        await self._app({**scope, "method": "GET"}, receive, send_head)


class Observe:
    """ASGI middleware: gives the request its id, the answer what all have in common, and a fault its 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
                message["headers"].extend(_RAW_SECURITY_HEADERS)
                self._metrics.count_request(_route(scope), message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        except ClientDisconnect:
            await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send_counted)
        except Exception as error:
            answer = for_caller(error, request_id)
            if started:
                raise  # The server cuts the connection, so that half an answer does not look whole.
            await answer.response()(scope, receive, send_counted)


@dataclass(frozen=True)
class _Route:
    """Stands for the router's own, in what is answered before it."""

    path: str


_GENERATES = _Route("/chat/completions")


class TakePlace:
    """ASGI middleware: a chat takes a place before anything else is done for it, or is told there is none.

    Leaves the place in the request's state, for the route to widen and to hand over. It may be there already.
    """

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _generates(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        try:
            place = state.setdefault("place", None) or self._admission.take_place()
        except ApiError as error:
            scope["route"] = _GENERATES
            await error.response()(scope, receive, send)
            return
        state["place"] = place
        try:
            await self._app(scope, receive, send)
        finally:
            place.free()


class TakeTurns:
    """ASGI middleware: chats are begun one after the other, and between two of them all else has its turn.

    To read a request and to render its prompt takes about a millisecond, in which nobody gets a token.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._last: asyncio.Future[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _generates(scope["method"], scope["path"]):
            before, self._last = self._last, asyncio.get_running_loop().create_future()
            await self._take(before, self._last)
        await self._app(scope, receive, send)

    async def _take(self, before: "asyncio.Future[None] | None", turn: "asyncio.Future[None]") -> None:
        try:
            if before and not before.done():
                await asyncio.wait({before})  # which, unlike `await before`, is cancelled alone
            await asyncio.sleep(0)
        finally:
            turn.set_result(None)


class Doorkeeper:
    """Follows app.connection.Door: a chat takes its place, or is told that there is none, before all else.

    Under a rush that is what most are told, and what /health waits for. An app costs ten times as much.
    Tokens are not looked at: that the server is full, anybody may know.
    """

    def __init__(self, admission: Admission, metrics: Metrics, has_origins: bool) -> None:
        """`has_origins`: browsers are let in, and what the app adds to answers for them is needed."""
        self._admission = admission
        self._metrics = metrics
        self._has_origins = has_origins

    def turn_away(self, method: bytes, target: bytes, headers: Headers) -> bytes | None:
        if not _generates(method.decode(), target.partition(b"?")[0].decode("latin-1")):
            return None
        if self._has_origins and any(name == b"origin" for name, _ in headers):
            return None
        try:
            self._admission.check_room(1)
        except ApiError as error:
            self._metrics.count_request(_GENERATES.path, error.status)
            return error.http({"x-request-id": uuid.uuid4().hex, **_SECURITY_HEADERS})
        return None

    def let_in(self, scope: HTTPScope) -> None:
        """What it takes, TakePlace frees."""
        if _generates(scope["method"], scope["path"]):
            with suppress(ApiError):
                scope["state"]["place"] = self._admission.take_place()


class LimitBody:
    """ASGI middleware: 413 for a longer body, whether or not its length was announced."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._announces_too_much(HeadersView(scope=scope)):
            await self._error().response()(scope, receive, send)
        else:
            await self._app(scope, self._limited(receive), send)

    def _announces_too_much(self, headers: HeadersView) -> bool:
        length = headers.get("content-length", "")
        return length.isdecimal() and int(length[:20]) > self._limit

    def _limited(self, receive: Receive) -> Receive:
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._error()
            return message

        return receive_limited

    def _error(self) -> ApiError:
        return ApiError(ErrorCode.PAYLOAD_TOO_LARGE, f"the body must have at most {self._limit} bytes")


def _generates(method: str, path: str) -> bool:
    return method == "POST" and unversioned(path) == _GENERATES.path


def _route(scope: Scope) -> str:
    """The matched route's pattern: the path itself would give every typing mistake a time series."""
    return unversioned(getattr(scope.get("route"), "path", "other"))

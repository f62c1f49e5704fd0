"""Middleware for every request: request ids, metrics, body limit, HEAD, responses to unhandled exceptions."""

import re
import uuid
from collections.abc import Callable, Mapping, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ApiError, ErrorCode
from app.http.auth import unversioned
from app.http.errors import CLIENT_CLOSED_REQUEST, STATUS, ErrorResponse, for_caller
from app.telemetry.metrics import Metrics
from app.telemetry.observation import Observation, Observer

# Other methods are recorded as "-": clients must not choose what metrics, logs and traces contain.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_TRACE_HEADERS = ("traceparent", "tracestate")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
_RAW_SECURITY_HEADERS = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
NO_PAGE = "default-src 'none'; frame-ancestors 'none'"


class AnswerHead:
    """ASGI middleware: answers HEAD like GET, without the body."""

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
    """ASGI middleware: gives each request an id, and each response the common headers.

    If the app raises an exception, it answers 500, or cuts the connection if the response has begun already.
    Each of `observers` is called once for each request, after its response.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        route_of: Callable[[str, str], str],
        observers: Sequence[Observer] = (),
    ) -> None:
        """`route_of`: maps method and path to the route's pattern, for requests that reach no router."""
        self._app = app
        self._metrics = metrics
        self._route_of = route_of
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        observation = Observation(request_id)
        scope.setdefault("state", {}).update(request_id=request_id, observation=observation)

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                observation.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers.setdefault("content-security-policy", NO_PAGE)
                message["headers"].extend(_RAW_SECURITY_HEADERS)
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except ClientDisconnect:
            await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send_observed)
        except Exception as error:
            answer = for_caller(error, request_id)
            if observation.status is not None:
                observation.error = answer.code.value
                raise  # uvicorn closes the connection, so that the client sees an incomplete response
            await ErrorResponse(answer)(scope, receive, send_observed)
        finally:
            _complete(observation, scope)
            self._report(observation, scope)

    def _report(self, observation: Observation, scope: Scope) -> None:
        matched = getattr(scope.get("route"), "path", None) or self._route_of(scope["method"], scope["path"])
        observation.route = unversioned(matched)
        if observation.status is not None:
            self._metrics.count_request(observation.route, observation.status)
        for observe in self._observers:
            observe(observation)


class LimitBody:
    """ASGI middleware: answers 413 to a body above the limit, with or without a Content-Length."""

    def __init__(self, app: ASGIApp, limit: int, others: Mapping[str, int] | None = None) -> None:
        """`limit`: in bytes. `others`: other limits for some paths, without /v1."""
        self._app = app
        self._limit = limit
        self._others = others or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._others.get(unversioned(scope["path"]), self._limit)
        if _announced(Headers(scope=scope)) > limit:
            await ErrorResponse(_too_large(limit))(scope, receive, send)
        else:
            await self._app(scope, _limited(receive, limit), send)


def _announced(headers: Headers) -> int:
    """The length of the body by its Content-Length, or 0."""
    length = headers.get("content-length", "")
    return int(length[:20]) if length.isdecimal() else 0


def _limited(receive: Receive, limit: int) -> Receive:
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(limit)
        return message

    return receive_limited


def _too_large(limit: int) -> ApiError:
    return ApiError(ErrorCode.PAYLOAD_TOO_LARGE, f"the body must have at most {limit} bytes")


def _complete(observation: Observation, scope: Scope) -> None:
    """Copies what the middleware and the router have stored in the request's scope into the observation."""
    state = scope["state"]
    caller = state.get("caller")
    observation.method = scope["method"] if scope["method"] in _METHODS else "-"
    observation.error = observation.error or state.get("error")
    if refusal := state.get("refusal"):
        observation.status, observation.error = STATUS[refusal], refusal.value
    observation.token = caller.name if caller else None
    headers = Headers(scope=scope)
    observation.client_request_id = _client_request_id(headers)
    observation.trace_headers = {name: headers[name] for name in _TRACE_HEADERS if name in headers}
    observation.mark_ended()


def _client_request_id(headers: Headers) -> str | None:
    """The caller's id for the request. It is only logged: the server's own request id must be unique."""
    given = headers.get("x-client-request-id") or headers.get("x-request-id") or ""
    return given if _REQUEST_ID.fullmatch(given) else None

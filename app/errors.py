"""The error tree, and the one table from an error's code to its HTTP status.

Knows the wire shape of an error; does not know who raises which.
"""

import logging
import math
import random
import reprlib
from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus

import msgspec
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

_log = logging.getLogger(__name__)


class ErrorCode(StrEnum):
    INVALID_REQUEST = "INVALID_REQUEST"
    CONTEXT_LENGTH_EXCEEDED = "CONTEXT_LENGTH_EXCEEDED"
    MISSING_CAPABILITY = "MISSING_CAPABILITY"
    UNAUTHORIZED = "UNAUTHORIZED"
    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    UNKNOWN_STEERING_CONCEPT = "UNKNOWN_STEERING_CONCEPT"
    NOT_FOUND = "NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    REQUEST_TIMEOUT = "REQUEST_TIMEOUT"
    CONFLICT = "CONFLICT"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    UNSUPPORTED_MEDIA_TYPE = "UNSUPPORTED_MEDIA_TYPE"
    RATE_LIMITED = "RATE_LIMITED"
    HEADERS_TOO_LARGE = "HEADERS_TOO_LARGE"
    INTERNAL = "INTERNAL"
    QUEUE_FULL = "QUEUE_FULL"
    UNAVAILABLE = "UNAVAILABLE"


STATUS = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: 400,
    ErrorCode.MISSING_CAPABILITY: 400,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.UNKNOWN_MODEL: 404,
    ErrorCode.UNKNOWN_STEERING_CONCEPT: 404,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.REQUEST_TIMEOUT: 408,
    ErrorCode.CONFLICT: 409,
    ErrorCode.PAYLOAD_TOO_LARGE: 413,
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: 415,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.HEADERS_TOO_LARGE: 431,
    ErrorCode.INTERNAL: 500,
    ErrorCode.QUEUE_FULL: 503,
    ErrorCode.UNAVAILABLE: 503,
}

_OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error"}

_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    429: {"Retry-After": "1"},
    503: {"Retry-After": "1"},
}

_RETRY_WITHIN_SECONDS = 4

# Nobody receives it: what metrics show for a client that left before it was answered.
CLIENT_CLOSED_REQUEST = 499

# A character takes at most six bytes in JSON, so these keep every body under 4 KB.
MAX_MESSAGE = 400
MAX_PARAM = 80


_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class ApiError(Exception):
    """A request that cannot be served, and why. The message is for the caller: no internals."""

    retry_after: int | None = None
    """Seconds after which another try may succeed, where that is known better than by the status."""

    def __init__(self, code: ErrorCode, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = clip(message, MAX_MESSAGE)
        self.param = None if param is None else clip(param, MAX_PARAM)

    @property
    def status(self) -> int:
        return STATUS[self.code]

    def body(self) -> dict[str, object]:
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": self.message,
            "type": _OPENAI_TYPES.get(self.status, fallback),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error, "code": self.code}

    @property
    def headers(self) -> dict[str, str]:
        """What goes with the status."""
        headers = dict(_HEADERS.get(self.status, {}))
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return headers

    def response(self) -> Response:
        return _ErrorResponse(self)

    def http(self, headers: Mapping[str, str]) -> bytes:
        """The whole answer as it goes over the wire, where there is no app to send it."""
        body = msgspec.json.encode(self.body())
        described = "".join([f"{name}: {value}\r\n" for name, value in {**self.headers, **headers}.items()])
        return (
            f"HTTP/1.1 {self.status} {_PHRASES[self.status]}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{described}\r\n"
        ).encode() + body


class _ErrorResponse(JSONResponse):
    """Leaves its code in the request's state, for whoever tells of the request."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.body(), error.status, headers=error.headers)
        self._code = error.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["error"] = self._code.value
        await super().__call__(scope, receive, send)


class StartError(Exception):
    """The server cannot start; the message is one line for the operator."""


class InvalidRequest(ApiError):  # noqa: N818
    """The request breaks a rule; `param` is the field's path."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(ErrorCode.INVALID_REQUEST, message, param)


class Unauthorized(ApiError):  # noqa: N818
    """Nobody that the server knows, or not for this."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.UNAUTHORIZED, message)


class RateLimited(ApiError):  # noqa: N818
    """The caller's share is used up; `seconds` from now there is some again."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(ErrorCode.RATE_LIMITED, message)
        self.retry_after = max(1, math.ceil(seconds))


class QueueFull(ApiError):  # noqa: N818
    """More are waiting than the server serves in time; another try may succeed later.

    Not all are told the same time, or they would all come back in the same moment.
    """

    def __init__(self, message: str = "too many requests are waiting; try again later") -> None:
        super().__init__(ErrorCode.QUEUE_FULL, message)
        self.retry_after = random.randint(1, _RETRY_WITHIN_SECONDS)  # noqa: S311 - no secret


class EngineUnavailable(ApiError):  # noqa: N818
    """The engine is down or going down; another try may succeed later."""

    def __init__(self, message: str = "the engine is not available") -> None:
        super().__init__(ErrorCode.UNAVAILABLE, message)


class InternalError(ApiError):
    """A fault of ours. What happened is in the log, under the request id."""

    def __init__(self, message: str = "internal error") -> None:
        super().__init__(ErrorCode.INTERNAL, message)


def clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shorten(value: object) -> str:
    """A short representation of what was given, whatever its size and depth."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 60
    brief.maxlist = brief.maxdict = brief.maxlevel = 3
    return clip(brief.repr(value), 100)


def for_caller(error: Exception, request_id: str) -> ApiError:
    """What the caller may know of an error: of a fault of ours only where to look for it, in the log."""
    if isinstance(error, ApiError) and error.code is not ErrorCode.INTERNAL:
        return error
    _log.error("request %(request_id)s failed", {"request_id": request_id}, exc_info=error)
    return InternalError(f"internal error; the server's log has it as request {request_id}")

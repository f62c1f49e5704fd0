"""The exceptions that the gateway raises, each with an error code of the API. Knows no HTTP.

`app.http.errors` maps each code to an HTTP status and a response body.
"""

import math
import random
import reprlib
from enum import StrEnum


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


SERVER_FAULTS = frozenset({ErrorCode.INTERNAL, ErrorCode.QUEUE_FULL, ErrorCode.UNAVAILABLE})
"""Codes for a failure of the server. All other codes mean that the request is at fault."""

_RETRY_WITHIN_SECONDS = 4

# In characters. JSON needs at most six bytes for a character, so every error body is smaller than 4 KB.
MAX_MESSAGE = 400
MAX_PARAM = 80


class ApiError(Exception):
    """The server cannot serve a request. The caller reads the message, so it must not reveal internals."""

    retry_after: int | None = None
    """Seconds after which a retry may succeed. None: unknown."""

    def __init__(self, code: ErrorCode, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = clip(message, MAX_MESSAGE)
        self.param = None if param is None else clip(param, MAX_PARAM)


class StartError(Exception):
    """The server cannot start. The message is one line for the operator."""


class InvalidRequest(ApiError):  # noqa: N818
    """The request breaks a rule. `param` is the path of the field at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(ErrorCode.INVALID_REQUEST, message, param)


class Unauthorized(ApiError):  # noqa: N818
    """The caller has no valid access token, or one without the required scope."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.UNAUTHORIZED, message)


class RateLimited(ApiError):  # noqa: N818
    """The caller has reached one of its limits. A retry may succeed after `seconds`."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(ErrorCode.RATE_LIMITED, message)
        self.retry_after = max(1, math.ceil(seconds))


class QueueFull(ApiError):  # noqa: N818
    """The server has no capacity for the request. A retry may succeed later.

    `retry_after` is random, so that refused clients do not all retry at the same moment.
    """

    def __init__(self, message: str = "too many requests are waiting; try again later") -> None:
        super().__init__(ErrorCode.QUEUE_FULL, message)
        self.retry_after = random.randint(1, _RETRY_WITHIN_SECONDS)  # noqa: S311 - no secret


class EngineUnavailable(ApiError):  # noqa: N818
    """The engine is down or is stopping. A retry may succeed later."""

    def __init__(self, message: str = "the engine is not available") -> None:
        super().__init__(ErrorCode.UNAVAILABLE, message)


class InternalError(ApiError):
    """The server has failed. The log has the details, under the request id."""

    def __init__(self, message: str = "internal error") -> None:
        super().__init__(ErrorCode.INTERNAL, message)


def clip(text: str, limit: int) -> str:
    """The text, cut to `limit` characters. A cut text ends with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shorten(value: object) -> str:
    """A representation of a value for messages: at most 100 characters, for a value of any size or depth."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 60
    brief.maxlist = brief.maxdict = brief.maxlevel = 3
    return clip(brief.repr(value), 100)

"""The exceptions that the gateway raises, each with a code of the contract. Plain Python: no HTTP.

`app.http.errors` maps a code to a status and to the bytes that the client gets.
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
"""The server could not serve the request. All other codes are faults in the request."""

_RETRY_WITHIN_SECONDS = 4

# A character takes at most six bytes in JSON, so these keep every body under 4 KB.
MAX_MESSAGE = 400
MAX_PARAM = 80


class ApiError(Exception):
    """A request that cannot be served, and why. The message is for the caller: no internals."""

    retry_after: int | None = None
    """Seconds after which another try may succeed, if more is known than the status says."""

    def __init__(self, code: ErrorCode, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = clip(message, MAX_MESSAGE)
        self.param = None if param is None else clip(param, MAX_PARAM)


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

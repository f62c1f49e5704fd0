"""Maps error codes to HTTP statuses, and ApiErrors to responses. Every error response is made here."""

import logging
from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from app.errors import ApiError, ErrorCode, InternalError

_log = logging.getLogger(__name__)

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

# The client disconnected before the response, so it never receives this status. Metrics and logs show it.
CLIENT_CLOSED_REQUEST = 499

_PHRASES = {status.value: status.phrase for status in HTTPStatus}


def error_body(error: ApiError) -> dict[str, object]:
    """OpenAI's clients read the object under `error`; Aleph Alpha's read the `code` at the top level."""
    status = STATUS[error.code]
    fallback = "server_error" if status >= 500 else "invalid_request_error"
    details = {
        "message": error.message,
        "type": _OPENAI_TYPES.get(status, fallback),
        "param": error.param,
        "code": error.code,
    }
    return {"error": details, "code": error.code}


def error_headers(error: ApiError) -> dict[str, str]:
    """The headers that go with the error: WWW-Authenticate for a 401, Retry-After for a 429 or 503."""
    headers = dict(_HEADERS.get(STATUS[error.code], {}))
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return headers


class ErrorResponse(JSONResponse):
    """An error as a response. Also stores its code in the request's state, for the access log and traces."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error_body(error), STATUS[error.code], headers=error_headers(error))
        self._code = error.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["error"] = self._code.value
        await super().__call__(scope, receive, send)


def raw_error(error: ApiError, headers: Mapping[str, str]) -> bytes:
    """The whole HTTP/1.1 response as bytes, for a connection that answers without the app."""
    status = STATUS[error.code]
    body = msgspec.json.encode(error_body(error))
    lines = "".join([f"{name}: {value}\r\n" for name, value in {**error_headers(error), **headers}.items()])
    return (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{lines}\r\n"
    ).encode() + body


def for_caller(error: Exception, request_id: str) -> ApiError:
    """The error that the caller may see.

    An internal error is logged with its traceback; the caller gets only the request id.
    """
    if isinstance(error, ApiError) and error.code is not ErrorCode.INTERNAL:
        return error
    _log.error("request %(request_id)s failed", {"request_id": request_id}, exc_info=error)
    return InternalError(f"internal error; see request {request_id} in the server's log")

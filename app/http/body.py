"""Parses a request's body into a request model. Knows no routes."""

import gc
from typing import Any, TypeVar

from anyio import to_thread
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from app.errors import ApiError, ErrorCode, InvalidRequest, shorten
from app.schemas.base import RequestModel
from app.schemas.faults import invalid_request

Model = TypeVar("Model", bound=RequestModel)

_LARGE_BODY = 65_536
"""Bytes. A body from this size on is parsed in a thread: the longest allowed body takes seconds to parse."""


async def read_json(request: Request, model: type[Model], context: object = None) -> Model:
    """Reads the request's body as a `model`. `context` is the validation context for its validators.

    Raises ApiError: UNSUPPORTED_MEDIA_TYPE, PAYLOAD_TOO_LARGE or INVALID_REQUEST.
    """
    _check_content_type(request.headers.get("content-type"))
    _check_encoding(request.headers.get("content-encoding"))
    body = await request.body()
    if len(body) < _LARGE_BODY:
        return _parse(body, model, context)
    return await to_thread.run_sync(_parse, body, model, context)


async def read_file(request: Request) -> bytes:
    """Reads the request's body as it is. Its Content-Type does not matter, but it must not be a form.

    Raises ApiError: UNSUPPORTED_MEDIA_TYPE or PAYLOAD_TOO_LARGE.
    """
    _check_encoding(request.headers.get("content-encoding"))
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        message = "the body must be the file itself, as `curl --data-binary @FILE` sends it, not a form"
        raise ApiError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, message)
    return await request.body()


def _parse(body: bytes, model: type[Model], context: object) -> Model:
    try:
        content = _decode(body)
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    try:
        return model.model_validate(content, context=context)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False)) from None


def _decode(body: bytes) -> Any:
    """Raises ValueError.

    The garbage collector is off meanwhile: with very many small values it would take ten times as long as
    the decoding, and it would block the event loop.
    """
    gc.disable()
    try:
        return from_json(body, allow_inf_nan=False)
    finally:
        gc.enable()


def _check_content_type(content_type: str | None) -> None:
    if content_type is None:
        return
    essence = content_type.partition(";")[0].strip().lower()
    if essence != "application/json" and not essence.endswith("+json"):
        message = f"the body must be application/json, got {shorten(content_type)}"
        raise ApiError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, message)


def _check_encoding(encoding: str | None) -> None:
    """Refuses compressed bodies: their size after decompression has no limit."""
    if encoding is not None and encoding.strip().lower() != "identity":
        message = f"the body must not be compressed, got Content-Encoding {shorten(encoding)}"
        raise ApiError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, message)

"""Parses a request's body into a request model, or describes the first error in it. Knows no routes."""

import gc
from collections.abc import Sequence
from typing import Any, TypeVar

from anyio import to_thread
from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.requests import Request

from app.errors import ApiError, ErrorCode, InvalidRequest, shorten
from app.schemas.base import RequestModel

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


def invalid_request(errors: Sequence[Any]) -> InvalidRequest:
    """The first of `errors` as an ApiError. They come from pydantic, or from FastAPI for query parameters."""
    error: ErrorDetails = errors[0]
    context = error.get("ctx", {})
    path = _path((*error["loc"], *context.get("at", ()))).removeprefix("query.")
    rule = _RULES.get(error["type"], error["msg"]).format_map(context)
    if error["type"] == "missing":
        return InvalidRequest(f"{path} {rule}", path)
    given = shorten(context.get("given", error["input"]))
    return InvalidRequest(f"{path or 'the body'} {rule}, got {given}", path or None)


_RULES = {
    "broken": "{rule}",
    "missing": "is required",
    "model_type": "must be an object",
    "string_type": "must be a string",
    "string_too_short": "must have at least {min_length} character(s)",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be a boolean",
    "bool_parsing": "must be a boolean",
    "list_type": "must be an array",
    "tuple_type": "must be a string or an array of strings",
    "too_long": "must have at most {max_length} items",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
}


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


def _path(location: Sequence[str | int]) -> str:
    """The field's path, such as `messages[0].content`. Keys from the request are shortened."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier():
            path += f".{part[:40]}"
        else:
            path += f"[{shorten(part[:40])}]"
    return path.removeprefix(".")

"""Describes what is wrong with the fields of a request. Knows no HTTP."""

from collections.abc import Sequence
from typing import Any

from pydantic_core import ErrorDetails

from app.errors import InvalidRequest, shorten


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
    "extra_forbidden": "is not a known field",
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

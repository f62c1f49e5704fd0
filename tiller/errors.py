"""The exceptions of this package. They have the messages of the HTTP API, with the names of the arguments."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from app.errors import ApiError, ErrorCode
from app.schemas.concepts import ID_PREFIX
from app.schemas.faults import invalid_request
from inference.driver import DriverError, RefusedError
from inference.interface.requests import RefusalCode
from inference.runner.recovery import BrokenEngineError

_ARGUMENTS = {
    "steering_concepts": "steering",
    "steering_strength": "steering",
    "steering_scope": "scope",
    "steering_mode": "mode",
    "steering_when": "when",
    "steering_readings": "readings",
    "top_logprobs": "logprobs",
    "examples": "pairs",
}
"""The fields of the API whose arguments have other names."""
_FIELD = re.compile(rf"\b({'|'.join(_ARGUMENTS)})\b")
_ID = re.compile(rf"{ID_PREFIX}(?=\w)")

_CALLERS_FAULTS = frozenset(
    {
        ErrorCode.INVALID_REQUEST,
        ErrorCode.CONTEXT_LENGTH_EXCEEDED,
        ErrorCode.MISSING_CAPABILITY,
        ErrorCode.CONFLICT,
    }
)


class TillerError(Exception):
    """The base class of all errors of this package."""


class InvalidRequestError(TillerError, ValueError):
    """An argument breaks a rule. The message is the one that the HTTP API sends with status 400."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        """The argument at fault, such as `messages[0].content`. None: the error is about no single one."""


class UnknownConceptError(TillerError, KeyError):
    """There is no concept of this name."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError shows the representation of a key


class EngineError(TillerError, RuntimeError):
    """The engine cannot compute a request, has failed, or is closed."""


class LoadError(TillerError, RuntimeError):
    """The model cannot be loaded. The message says what is missing or wrong."""


@contextmanager
def as_python_errors(prefix: str = "") -> Iterator[None]:
    """Raises the errors of this package in place of those of the text layer.

    `prefix`: stands before the name of the argument at fault, such as "requests[3].".
    """
    try:
        yield
    except ValidationError as error:
        raise _translate(invalid_request(error.errors(include_url=False)), prefix) from None
    except ApiError as error:
        raise _translate(error, prefix) from None
    except RefusedError as error:
        raise _refusal(error) from None
    except (DriverError, BrokenEngineError) as error:
        raise EngineError(str(error)) from error


def _refusal(error: RefusedError) -> TillerError:
    match error.result.refusal:
        case RefusalCode.CONTEXT_LENGTH_EXCEEDED:
            rule = "prompt and max_tokens together exceed the model's context"
            return InvalidRequestError(rule, "max_tokens")
        case RefusalCode.QUEUE_FULL:
            return InvalidRequestError("n is more than max_running allows", "n")
    return EngineError(str(error))


def _translate(error: ApiError, prefix: str) -> TillerError:
    message = prefix + _in_python(error.message)
    if error.code is ErrorCode.UNKNOWN_STEERING_CONCEPT:
        return UnknownConceptError(message)
    if error.code not in _CALLERS_FAULTS:
        return EngineError(message)
    return InvalidRequestError(message, error.param and prefix + _in_python(error.param))


def _in_python(text: str) -> str:
    """With the names of arguments in place of fields, and of concepts in place of their ids."""
    return _ID.sub("", _FIELD.sub(lambda field: _ARGUMENTS[field[0]], text))

"""The parameters of an answer, as people write them: `temperature 0.3`, `sentiment=-1`. Knows no server."""

import json
import math

from app.commands.errors import UsageError
from app.schemas.chat import ChatRequest
from app.schemas.concepts import full_id
from app.schemas.steering import MAX_STRENGTH

PARAMETERS = (
    "temperature",
    "max_tokens",
    "top_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "stop",
    "logit_bias",
    "steering_scope",
    "steering_mode",
    "steering_when",
)
"""The fields of a chat request that a user may set. A chat sets the other ones itself."""
ONLY_AS_JSON = ("n", "logprobs", "top_logprobs", "steering_readings")
"""Those whose results a plain text cannot show."""

_DEFAULT_STRENGTH = 1.0


def describe(parameter: str) -> str:
    """The first sentence of the parameter's description in the API."""
    description = ChatRequest.model_fields[parameter].description or ""
    return " ".join(description.split()).partition(". ")[0].rstrip(".")


def read_assignment(text: str, as_json: bool) -> tuple[str, object]:
    """Splits `NAME=VALUE`. Raises UsageError."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set needs NAME=VALUE, such as temperature=0.3, and not {text!r}")
    return check_name(name.strip(), as_json), read_value(value)


def check_name(name: str, as_json: bool = False) -> str:
    """Returns the name. Raises UsageError if there is no such parameter: the server would ignore it."""
    if name in ONLY_AS_JSON and not as_json:
        raise UsageError(f"{name} needs a question and --json")
    if name not in PARAMETERS and name not in ONLY_AS_JSON:
        raise UsageError(f"there is no parameter {name!r}; there are: {', '.join(PARAMETERS)}")
    return name


def read_value(text: str) -> object:
    """A number, or any other JSON value, or else the text itself. The server checks the rest."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def read_concept(text: str) -> tuple[str, float]:
    """Splits `NAME=STRENGTH`, or `NAME` for the strength 1. Returns the concept's full id and the strength.

    Raises UsageError.
    """
    name, equals, strength = text.partition("=")
    return full_id(name.strip()), read_strength(strength) if equals else _DEFAULT_STRENGTH


def read_strength(text: str) -> float:
    """Raises UsageError if it is not a number that a request may have."""
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    if not abs(strength) <= MAX_STRENGTH:  # also if it is no number
        raise UsageError(
            f"a strength is a number from -{MAX_STRENGTH} to {MAX_STRENGTH}, such as -1, and not {text!r}"
        )
    return strength

"""The chat request: every field's type and range, as in the contract. Knows no model.

A ChatRequest is validated with the operator's LimitSettings as the context.
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    FailFast,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from app.schemas.base import RequestModel, broken, limits_of
from app.schemas.concepts import ID_PATTERN, ConceptId, full_id

MAX_STOPS = 16
MAX_STEERING_CONCEPTS = 16

_DECIMAL = r"^(0|[1-9][0-9]{0,9})$"


class TextPart(RequestModel):
    type: Literal["text"]
    text: str


def _join_parts(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    for position, part in enumerate(content):
        if not isinstance(part, dict):
            raise broken("must be an object", part, position)
        if part.get("type") != "text":
            raise broken("must be 'text', the only supported part", part.get("type"), position, "type")
        if not isinstance(part.get("text"), str):
            raise broken("must be a string", part.get("text"), position, "text")
    return "".join(part["text"] for part in content)


class Message(RequestModel):
    """Other fields, `name` among them, are ignored."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_join_parts, json_schema_input_type=str | list[TextPart])]


class StreamOptions(RequestModel):
    include_usage: bool = False


def _parse_bias(given: Any) -> Any:
    if not isinstance(given, dict):
        raise broken("must be an object of token ids and numbers", given)
    for key, value in given.items():
        if not re.fullmatch(_DECIMAL[1:-1], key):
            raise broken("is not a token id", key, key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise broken("must be a finite number", value, key)
    return {int(key): float(value) for key, value in given.items()}


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _listed(stop: Any) -> Any:
    if isinstance(stop, str):
        return (stop,)
    return tuple(stop) if isinstance(stop, list) else stop


def _reject(given: Any) -> Any:
    raise broken("is unsupported", given)


def _name_concepts(given: Any) -> Any:
    """`_worker/` ids, each once, in the order given."""
    if not isinstance(given, list):
        raise broken("must be an array of strings", given)
    for position, concept in enumerate(given):
        if not isinstance(concept, str) or not re.fullmatch(ID_PATTERN, concept):
            raise broken("must match ^_worker/[a-zA-Z0-9-_]{1,64}$", concept, position)
    distinct = tuple(dict.fromkeys(map(full_id, given)))
    if len(distinct) > MAX_STEERING_CONCEPTS:
        raise broken(f"must name at most {MAX_STEERING_CONCEPTS} concepts", given)
    return distinct


Penalty = Annotated[float, Field(ge=-2, le=2)]
PositiveInt = Annotated[int, Field(ge=1)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopList = Annotated[list[StopString], Field(max_length=MAX_STOPS)]
TokenIdKey = Annotated[str, StringConstraints(pattern=_DECIMAL)]
Biases = Annotated[dict[TokenIdKey, float], Field(json_schema_extra={"additionalProperties": False})]
ConceptList = Annotated[list[ConceptId], Field(description=f"At most {MAX_STEERING_CONCEPTS} distinct ones.")]

Rejected = Annotated[
    None,
    BeforeValidator(_reject),
    WithJsonSchema({"type": "null", "description": "Unsupported: any value but null is rejected with 400."}),
]
Ignored = Annotated[Any, WithJsonSchema({"description": "Ignored, whatever its value and type."})]


class ChatRequest(RequestModel):
    """The body of POST /chat/completions. Fields that are not listed are ignored."""

    messages: Annotated[list[Message], FailFast(), Field(json_schema_extra={"minItems": 1})]
    """At most one `system` message, first; then `user` and `assistant` in turn, from `user` to `user`."""
    model: str
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: Annotated[
        dict[int, float],
        Field(default_factory=dict),
        BeforeValidator(_parse_bias, json_schema_input_type=Biases),
    ]
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    maximum_tokens: Annotated[PositiveInt | None, Field(json_schema_extra={"deprecated": True})] = None
    """Aleph Alpha's Python client sends this one. The same as max_tokens, as is max_completion_tokens."""
    n: PositiveInt = 1
    stop: Annotated[
        tuple[StopString, ...],
        Field(max_length=MAX_STOPS),
        FailFast(),
        BeforeValidator(_listed, json_schema_input_type=StopString | StopList),
    ] = ()
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: PositiveInt | None = None
    steering_concepts: Annotated[
        tuple[str, ...], BeforeValidator(_name_concepts, json_schema_input_type=ConceptList)
    ] = ()
    steering_strength: Annotated[float, Field(ge=-2, le=2)] = 1.0

    response_format: Rejected = None
    tools: Rejected = None
    tool_choice: Rejected = None
    parallel_tool_calls: Rejected = None

    seed: Ignored = None
    service_tier: Ignored = None
    user: Ignored = None

    @field_validator("messages", "logit_bias", mode="before")
    @classmethod
    def _check_count(cls, given: Any, info: ValidationInfo) -> Any:
        """Before what they hold: there may be very many."""
        limits = limits_of(info)
        if info.field_name == "messages":
            limit, what = limits.max_messages, "items"
        else:
            limit, what = limits.max_logit_bias, "entries"
        if isinstance(given, list | dict) and len(given) > limit:
            raise broken(f"must have at most {limit} {what}", len(given))
        return given

    @field_validator("n")
    @classmethod
    def _check_n(cls, n: int, info: ValidationInfo) -> int:
        limit = limits_of(info).max_n
        if n > limit:
            raise broken(f"must be at most {limit}", n)
        return n

    @field_validator("messages")
    @classmethod
    def _check_roles(cls, messages: list[Message]) -> list[Message]:
        first = 1 if messages and messages[0].role == "system" else 0
        for position, message in enumerate(messages[first:]):
            expected = "assistant" if position % 2 else "user"
            if message.role != expected:
                rule = f"must be '{expected}' (an optional system message, then user and assistant in turn)"
                raise broken(rule, message.role, first + position, "role")
        if (len(messages) - first) % 2 == 0:
            raise broken("must end with a user message", messages[-1].role if messages else [])
        return messages

    @model_validator(mode="after")
    def _check_token_limits(self) -> "ChatRequest":
        if len(self._token_limits) > 1:
            raise broken(
                "must be the same as its aliases max_completion_tokens and maximum_tokens",
                sorted(self._token_limits),
                "max_tokens",
            )
        return self

    @property
    def _token_limits(self) -> set[int]:
        given = (self.max_tokens, self.max_completion_tokens, self.maximum_tokens)
        return {limit for limit in given if limit is not None}

    @property
    def token_limit(self) -> int | None:
        """max_tokens, by whichever of its names it was given."""
        return next(iter(self._token_limits), None)

    @property
    def logprobs_wanted(self) -> int | None:
        """How many of the most likely tokens to report; None: no log probabilities at all."""
        return self.top_logprobs if self.logprobs or self.top_logprobs else None

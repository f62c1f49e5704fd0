"""The chat request: the type and the range of each field. Knows no model.

Validate a ChatRequest with the operator's Settings as the context.
"""

import math
import re
from typing import Annotated, Any

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

from app.schemas.base import RequestModel, rule_error, settings_of
from app.schemas.messages import Message, check_order, merge
from app.schemas.steering import DistinctIds, Mode, Scope, SteeringWhen, Strength, check_steering

MAX_STOPS = 16

WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none",),
}
"""The unsupported fields, and their values that have no effect. The lenient mode accepts these."""

_DECIMAL = r"^(0|[1-9][0-9]{0,9})$"


class StreamOptions(RequestModel):
    """Options of a streamed answer. They have no effect if `stream` is false."""

    include_usage: bool = False
    """Sends one more chunk at the end, with the `usage` of the whole answer."""


def _parse_bias(given: Any) -> Any:
    if not isinstance(given, dict):
        raise rule_error("must be an object that maps token ids to numbers", given)
    for key, value in given.items():
        if not re.fullmatch(_DECIMAL[1:-1], key):
            raise rule_error("is not a token id", key, key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise rule_error("must be a finite number", value, key)
    return {int(key): float(value) for key, value in given.items()}


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _as_tuple(stop: Any) -> Any:
    if isinstance(stop, str):
        return (stop,)
    return tuple(stop) if isinstance(stop, list) else stop


def _reject(given: Any, info: ValidationInfo) -> None:
    accepted = () if settings_of(info).api.strict else WITHOUT_EFFECT[info.field_name or ""]
    if not any(type(given) is type(value) and given == value for value in accepted):  # 1 == True in Python
        raise rule_error("is unsupported", given)


Penalty = Annotated[float, Field(ge=-2, le=2)]
PositiveInt = Annotated[int, Field(ge=1)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopList = Annotated[list[StopString], Field(max_length=MAX_STOPS)]
TokenIdKey = Annotated[str, StringConstraints(pattern=_DECIMAL)]
Biases = Annotated[dict[TokenIdKey, float], Field(json_schema_extra={"additionalProperties": False})]

Rejected = Annotated[
    None,
    BeforeValidator(_reject),
    WithJsonSchema({"type": "null", "description": "Unsupported. Any value except null is a 400."}),
]
Ignored = Annotated[Any, WithJsonSchema({"description": "Ignored. It may have any value and type."})]


class ChatRequest(RequestModel):
    """The body of POST /chat/completions. Fields that are not listed here are ignored."""

    messages: Annotated[list[Message], FailFast(), Field(json_schema_extra={"minItems": 1})]
    """The conversation. It may begin with one `system` message. Then `user` and `assistant` messages
    alternate; the first and the last of these are `user` messages."""
    model: str
    """The name of a served model, as `GET /models` lists it."""
    frequency_penalty: Penalty = 0.0
    """Subtracted from a token's logit once for each occurrence of the token in the completion so far. The
    prompt does not count."""
    presence_penalty: Penalty = 0.0
    """Subtracted from a token's logit once if the token occurs in the completion so far. The prompt does not
    count."""
    logit_bias: Annotated[
        dict[int, float],
        Field(default_factory=dict),
        BeforeValidator(_parse_bias, json_schema_input_type=Biases),
    ]
    """Maps token ids, as strings, to numbers that are added to the tokens' logits. A value of -100 or less
    bans the token. If any value is 100 or more, only tokens with such a value can be sampled."""
    logprobs: bool = False
    """Returns the log probability of each sampled token."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    """Returns the log probabilities of this many most likely tokens at each position. A value above 0 implies
    `logprobs`."""
    max_tokens: PositiveInt | None = None
    """Maximum number of tokens in each choice. Default: as many as the model's context leaves after the
    prompt, or fewer if the operator has set a default. A request whose prompt and `max_tokens` together
    exceed the context is refused."""
    max_completion_tokens: PositiveInt | None = None
    """Another name for `max_tokens`. If several of these names are given, their values must be equal."""
    maximum_tokens: Annotated[PositiveInt | None, Field(json_schema_extra={"deprecated": True})] = None
    """Another name for `max_tokens`, which Aleph Alpha's Python client sends."""
    n: PositiveInt = 1
    """Number of choices. Each choice continues the same prompt."""
    stop: Annotated[
        tuple[StopString, ...],
        Field(max_length=MAX_STOPS),
        FailFast(),
        BeforeValidator(_as_tuple, json_schema_input_type=StopString | StopList),
    ] = ()
    """One stop sequence, or an array of at most 16. A choice ends when its text contains one of them. The
    stop sequence itself is not returned."""
    stream: bool = False
    """Sends the answer as server-sent events, chunk by chunk."""
    stream_options: StreamOptions = StreamOptions()
    """Options of a streamed answer."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Divides the logits before sampling. 0 always takes the most likely token."""
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Nucleus sampling: samples from the fewest most likely tokens whose probabilities add up to at least
    `top_p`. 0 always takes the most likely token."""
    top_k: PositiveInt | None = None
    """Samples from the `top_k` most likely tokens only. Default: from all tokens."""
    steering_concepts: DistinctIds = ()
    """Ids of the steering concepts for this request, with or without `_worker/`. At most 16 distinct ids. The
    directions are added together. Concepts with the same examples count once."""
    steering_strength: Strength = 1.0
    """One number for all steering concepts of the request, or an object that maps their ids to numbers. A
    concept that the object leaves out has 1. A negative value steers away from a concept. 0: no steering."""
    steering_scope: Scope = "all"
    """What is steered: the `prompt`, the `answer`, or `all` of both."""
    steering_mode: Mode = "add"
    """What is done to the activations: `add` adds the concept's vector; `ablate` removes the activations'
    component along the vector; `clamp` replaces this component by what `add` would add."""
    steering_when: SteeringWhen | None = None
    """Steers only if the prompt meets this condition, and only the answer. Without it: always."""
    steering_readings: DistinctIds = ()
    """Ids of concepts, with or without `_worker/`. At most 16 distinct ids. The answer reports how strongly
    each concept is present at each token. The concepts need not be among `steering_concepts`."""

    response_format: Rejected = None
    tools: Rejected = None
    tool_choice: Rejected = None
    parallel_tool_calls: Rejected = None
    functions: Rejected = None
    function_call: Rejected = None

    seed: Ignored = None
    service_tier: Ignored = None
    user: Ignored = None

    @field_validator("messages", "logit_bias", mode="before")
    @classmethod
    def _check_count(cls, given: Any, info: ValidationInfo) -> Any:
        """Runs before the entries are validated, because a request may contain very many of them."""
        limits = settings_of(info).limits
        if info.field_name == "messages":
            limit, what = limits.max_messages, "items"
        else:
            limit, what = limits.max_logit_bias, "entries"
        if isinstance(given, list | dict) and len(given) > limit:
            raise rule_error(f"must have at most {limit} {what}", len(given))
        return given

    @field_validator("n")
    @classmethod
    def _check_n(cls, n: int, info: ValidationInfo) -> int:
        limit = settings_of(info).limits.max_n
        if n > limit:
            raise rule_error(f"must be at most {limit}", n)
        return n

    @field_validator("messages")
    @classmethod
    def _check_roles(cls, messages: list[Message], info: ValidationInfo) -> list[Message]:
        if not settings_of(info).api.strict:
            return merge(messages)
        check_order(messages)
        return messages

    @model_validator(mode="after")
    def _check_token_limits(self) -> "ChatRequest":
        if len(self._token_limits) > 1:
            raise rule_error(
                "must be equal to its aliases max_completion_tokens and maximum_tokens",
                sorted(self._token_limits),
                "max_tokens",
            )
        return self

    @model_validator(mode="after")
    def _check_steering(self) -> "ChatRequest":
        check_steering(
            self.steering_concepts, self.steering_strength, self.steering_scope, self.steering_when
        )
        return self

    @property
    def _token_limits(self) -> set[int]:
        given = (self.max_tokens, self.max_completion_tokens, self.maximum_tokens)
        return {limit for limit in given if limit is not None}

    @property
    def token_limit(self) -> int | None:
        """The value of max_tokens or of one of its aliases. None: not given."""
        return next(iter(self._token_limits), None)

    def strength_of(self, concept: str) -> float:
        """The strength of one of the steering concepts. `concept`: the full id."""
        strength = self.steering_strength
        return strength.get(concept, 1.0) if isinstance(strength, dict) else strength

    @property
    def logprobs_wanted(self) -> int | None:
        """The number of most likely tokens to report at each position. None: no log probabilities at all."""
        return self.top_logprobs if self.logprobs or self.top_logprobs else None

"""The answers of the chat route: a completion, or the chunks of a stream."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class Usage(msgspec.Struct, frozen=True):
    """Token counts of a request: its prompt, counted once, and the tokens generated for all its choices."""

    prompt_tokens: int
    """Tokens of the prompt, including those of the chat template."""
    completion_tokens: int
    """Tokens of all choices, without end-of-turn tokens."""
    total_tokens: int
    """The sum of both."""


class TopLogprob(msgspec.Struct, frozen=True):
    """One of the most likely tokens at a position."""

    token: str
    """The token as text."""
    logprob: float
    """Its log probability. -9999.0 if it is not finite."""
    bytes: list[int]
    """The token's bytes, which may be only a part of a character."""


class TokenLogprob(msgspec.Struct, frozen=True):
    """The sampled token at a position, and the most likely tokens there, best first."""

    token: str
    """The token as text."""
    logprob: float
    """Its log probability. -9999.0 if it is not finite."""
    bytes: list[int]
    """The token's bytes, which may be only a part of a character."""
    top_logprobs: list[TopLogprob]
    """As many as the request's `top_logprobs`."""


class Logprobs(msgspec.Struct, frozen=True):
    """Log probabilities of a choice's tokens, before penalties, `logit_bias`, temperature and truncation."""

    content: list[TokenLogprob]
    """One entry for each token of the text."""


class TokenReadings(msgspec.Struct, frozen=True):
    """How strongly concepts are present at a token."""

    token: str
    """The token as text."""
    bytes: list[int]
    """The token's bytes, which may be only a part of a character."""
    readings: dict[str, float | None]
    """Maps each id of the request's `steering_readings`, in that order, to the concept's reading. 0 and 1 are
    the means of the concept's negative and positive examples. null if the value is not finite."""


class SteeringReadings(msgspec.Struct, frozen=True):
    """How strongly concepts are present at a choice's tokens."""

    content: list[TokenReadings]
    """One entry for each entry that `logprobs` has or would have."""


class SteeringReport(msgspec.Struct, frozen=True):
    """Where steering differs from what the request asks for."""

    applied: dict[str, float]
    """Maps the id of each concept whose strength is beyond what the concept allows to the strength that is
    used instead."""


FinishReason = Literal["stop", "length", "content_filter"]


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The text of a choice."""

    role: Literal["assistant"] = "assistant"
    """Always `assistant`."""
    content: str
    """The generated text."""


class Choice(msgspec.Struct, frozen=True):
    """One of the n completions of a request."""

    index: int
    """The number of the choice, from 0."""
    message: AssistantMessage
    """The message that the model has generated."""
    logprobs: Logprobs | None
    """Log probabilities of the tokens, if the request asks for them."""
    finish_reason: FinishReason
    """`stop`: end of turn, or a stop sequence. `length`: `max_tokens` or the context is used up.
    `content_filter`: any other reason; the server never sends it now."""
    steering_readings: SteeringReadings | UnsetType = UNSET
    """Readings of the tokens. Only if the request has `steering_readings`."""


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer to a chat request."""

    id: str
    """`chatcmpl-` and the request's id."""
    object: Literal["chat.completion"] = "chat.completion"
    """Always `chat.completion`."""
    created: int
    """Seconds since 1970."""
    model: str
    """The name of the model."""
    system_fingerprint: str
    """Changes only with the weights, the dtype or the server's version."""
    choices: list[Choice]
    """The `n` choices."""
    usage: Usage
    """The number of tokens."""
    steering: SteeringReport | UnsetType = UNSET
    """Only if a strength was reduced to what the concept allows."""


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to a choice's message."""

    role: Literal["assistant"] | UnsetType = UNSET
    """In the first chunk of a choice: `assistant`."""
    content: str | UnsetType = UNSET
    """The next piece of the text."""


class ChunkChoice(msgspec.Struct, frozen=True):
    """The part of a choice that a chunk contains."""

    index: int
    """The number of the choice, from 0."""
    delta: Delta
    """The new part of the message."""
    logprobs: Logprobs | None = None
    """Log probabilities of the tokens in this chunk, if the request asks for them."""
    finish_reason: FinishReason | None = None
    """In the last chunk of a choice: why it ends. See Choice."""
    steering_readings: SteeringReadings | UnsetType = UNSET
    """Readings of the tokens in this chunk. Only if the request has `steering_readings`."""


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed answer. `usage` is set only in the last chunk, if the request asks for it."""

    id: str
    """The same in all chunks: `chatcmpl-` and the request's id."""
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    """Always `chat.completion.chunk`."""
    created: int
    """Seconds since 1970, the same in all chunks."""
    model: str
    """The name of the model."""
    system_fingerprint: str | None = None
    """In the last chunk of a choice: changes only with the weights, the dtype or the server's version."""
    choices: list[ChunkChoice]
    """The choice that the chunk continues. Empty in the chunk with `usage`."""
    usage: Usage | None = None
    """The number of tokens of the whole answer, in the last chunk, if the request asks for it."""
    steering: SteeringReport | UnsetType = UNSET
    """In the last chunk of a choice: only if a strength was reduced to what the concept allows."""

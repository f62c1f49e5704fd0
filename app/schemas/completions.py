"""The answers of the chat route: a completion, or the chunks of a stream."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class Usage(msgspec.Struct, frozen=True):
    """Token counts of a request: its prompt, counted once, and the tokens generated for all its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(msgspec.Struct, frozen=True):
    """One of the most likely tokens at a position."""

    token: str
    logprob: float
    bytes: list[int]
    """The token's bytes, which may be only a part of a character."""


class TokenLogprob(msgspec.Struct, frozen=True):
    """The sampled token at a position, and the most likely tokens there, best first."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct, frozen=True):
    """Log probabilities of a choice's tokens, before penalties, `logit_bias`, temperature and truncation."""

    content: list[TokenLogprob]


FinishReason = Literal["stop", "length", "content_filter"]


class AssistantMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The text of a choice."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(msgspec.Struct, frozen=True):
    """One of the n completions of a request."""

    index: int
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer to a chat request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    """Seconds since 1970."""
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to a choice's message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    """The part of a choice that a chunk contains."""

    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed answer. `usage` is set only in the last chunk, if the request asks for it."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChunkChoice]
    usage: Usage | None = None

"""Request and answer of POST /steering_concepts/{concept}/read.

Validate a ReadRequest with the operator's Settings as the context.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Annotated, Any

import msgspec
from pydantic import (
    AfterValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from app.schemas.base import RequestModel, allow_null, rule_error, settings_of
from app.schemas.messages import SEPARATOR, Message, check_order, merge


def _check_text(text: str) -> str:
    if not text:
        raise rule_error("must not be empty", text)
    return text


Text = Annotated[str, AfterValidator(_check_text), Field(json_schema_extra={"minLength": 1})]


def _describe_choice(schema: dict[str, Any]) -> None:
    """Says that either `texts` or `messages` is given."""
    allow_null(schema)
    descriptions = {name: field["description"] for name, field in schema["properties"].items()}
    schema["oneOf"] = [
        {
            "required": [given],
            "properties": {
                given: {"type": "array", "description": descriptions[given]},
                absent: {"type": "null", "description": descriptions[absent]},
            },
        }
        for given, absent in (("texts", "messages"), ("messages", "texts"))
    ]


class ReadRequest(RequestModel):
    """The body: either `texts` or `messages`. Fields that are not listed here are ignored."""

    model_config = ConfigDict(json_schema_extra=_describe_choice)

    texts: Annotated[list[Text], FailFast(), Field(default_factory=list, json_schema_extra={"minItems": 1})]
    """Texts to read, each on its own. The model reads each as the assistant's answer to "Tell me
    something.", as it reads the texts of a concept's examples."""
    messages: Annotated[
        list[Message], FailFast(), Field(default_factory=list, json_schema_extra={"minItems": 1})
    ]
    """A conversation to read, as in a chat request. It may also end with an `assistant` message."""
    model: str | None = None
    """The name of the model that reads, as `GET /models` lists it. Default: the first one that accepts the
    concept."""

    @field_validator("texts", "messages", mode="before")
    @classmethod
    def _check_count(cls, given: Any, info: ValidationInfo) -> Any:
        """Runs before the entries are validated, because a request may contain very many of them."""
        limits = settings_of(info).limits
        limit = limits.max_read_texts if info.field_name == "texts" else limits.max_messages
        if isinstance(given, list) and not 1 <= len(given) <= limit:
            raise rule_error(f"must have 1 to {limit} items", len(given))
        return given

    @field_validator("messages")
    @classmethod
    def _check_roles(cls, messages: list[Message], info: ValidationInfo) -> list[Message]:
        """The rules of a chat apply to the messages before the assistant's last words."""
        before, words = _split(messages)
        if not settings_of(info).api.strict:
            return [*merge(before), *_join(words)]
        check_order(messages if len(words) > 1 else before)
        return messages

    @model_validator(mode="after")
    def _check_choice(self) -> "ReadRequest":
        if bool(self.texts) == bool(self.messages):
            given = "both" if self.texts else "neither"
            raise rule_error("must have either texts or messages", given)
        return self

    @property
    def turns(self) -> tuple[list[Message], str | None]:
        """The messages, and the words of the assistant that follow them. None: the user has the last word."""
        before, words = _split(self.messages)
        return before, words[0].content if words else None


def _split(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """The messages up to the user's last one, and the assistant's messages after it."""
    count = len(list(takewhile(lambda message: message.role == "assistant", reversed(messages))))
    end = len(messages) - count
    return list(messages[:end]), list(messages[end:])


def _join(words: Sequence[Message]) -> list[Message]:
    text = SEPARATOR.join(message.content for message in words if message.content)
    return [words[0].model_copy(update={"content": text})] if words else []


class TokenReading(msgspec.Struct, frozen=True):
    """How strongly the concept is present at a token."""

    token: str
    """The token as text."""
    reading: float | None
    """0 and 1 are the means of the concept's negative and positive examples. null if it is not finite."""


class TextReadings(msgspec.Struct, frozen=True):
    """How strongly the concept is present in a text."""

    mean: float | None
    """The mean over the tokens. null if it is not finite."""
    tokens: list[TokenReading]
    """The tokens of the text, in order."""


class Readings(msgspec.Struct, frozen=True):
    """The answer."""

    readings: list[TextReadings]
    """One entry for each text, in order, or one for the conversation."""

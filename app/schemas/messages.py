"""The messages of a chat request: their types, and the order of their roles. Knows no model.

The spec's order is strict: an optional system message, then user and assistant in turn, and a user message at
both ends. The lenient mode (`api.strict: false`) accepts what agent frameworks send as well.
"""

from collections.abc import Sequence
from itertools import groupby, takewhile
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from app.schemas.base import RequestModel, rule_error, settings_of

SEPARATOR = "\n\n"
"""Stands between the texts of merged messages."""

_OTHER_NAMES = {"developer": "system"}
"""Other names of roles in the lenient mode."""

LENIENT_MESSAGES = (
    "The conversation. Neighbours of the same role are merged, with an empty line between their texts. "
    "`developer` is another name for the role `system`. First there may be `system` messages, and then a "
    "greeting of the `assistant`, which is left out if the model's chat template refuses it. Then `user` and "
    "`assistant` take turns. The last message is a `user` message."
)
"""The description of `messages` in the lenient mode."""


class TextPart(RequestModel):
    """A part of a message's content. The server joins all parts of a message."""

    type: Literal["text"]
    """Always `text`. Other types are unsupported."""
    text: str
    """The text of this part."""


def _join_parts(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    for position, part in enumerate(content):
        if not isinstance(part, dict):
            raise rule_error("must be an object", part, position)
        if part.get("type") != "text":
            raise rule_error("must be 'text', the only supported type", part.get("type"), position, "type")
        if not isinstance(part.get("text"), str):
            raise rule_error("must be a string", part.get("text"), position, "text")
    return "".join(part["text"] for part in content)


def _read_role(role: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """The lenient mode lets other names pass, so that errors can quote them. `merge` replaces them."""
    is_other_name = isinstance(role, str) and role in _OTHER_NAMES
    return role if is_other_name and not settings_of(info).api.strict else read(role)


class Message(RequestModel):
    """A message of the conversation. Other fields, such as `name`, are ignored."""

    role: Annotated[Literal["system", "user", "assistant"], WrapValidator(_read_role)]
    """The author of the message."""
    content: Annotated[str, BeforeValidator(_join_parts, json_schema_input_type=str | list[TextPart])]
    """A string, or an array of text parts, which the server joins. The name of a control token, such as
    `<|im_end|>`, is read as text."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_calls(cls, data: Any) -> Any:
        """Names the cause: a message that only calls tools has no content."""
        if isinstance(data, dict) and data.get("content") is None:
            for field in ("tool_calls", "function_call"):
                if data.get(field):
                    raise rule_error("is unsupported", data[field], field)
        return data


def check_order(messages: Sequence[Message]) -> None:
    """Checks the spec's order of roles."""
    first = _count_system(messages)
    for number, message in enumerate(messages[first:]):
        expected = "assistant" if number % 2 else "user"
        if message.role != expected:
            rule = f"must be '{expected}' (an optional system message, then user and assistant in turn)"
            raise rule_error(rule, message.role, first + number, "role")
    _check_end(messages)


def merge(messages: Sequence[Message]) -> list[Message]:
    """Checks the lenient order of roles. Then merges neighbours of the same role."""
    roles = [_role_of(message) for message in messages]
    first = len(list(takewhile("system".__eq__, roles)))
    if "system" in roles[first:]:
        position = roles.index("system", first)
        rule = "must be 'user' or 'assistant' (system messages must come first)"
        raise rule_error(rule, messages[position].role, position, "role")
    _check_end(messages)
    return [_join(role, list(group)) for role, group in groupby(messages, _role_of)]


def has_greeting(messages: Sequence[Message]) -> bool:
    """Whether the assistant speaks before the user."""
    first = _count_system(messages)
    return len(messages) > first and messages[first].role == "assistant"


def without_greeting(messages: Sequence[Message]) -> list[Message]:
    """The same conversation without the greeting, which it must have."""
    first = _count_system(messages)
    return [*messages[:first], *messages[first + 1 :]]


def _count_system(messages: Sequence[Message]) -> int:
    """1 if the first message is a system message, else 0."""
    return 1 if messages and messages[0].role == "system" else 0


def _check_end(messages: Sequence[Message]) -> None:
    if not messages or messages[-1].role != "user":
        raise rule_error("must end with a user message", messages[-1].role if messages else [])


def _role_of(message: Message) -> str:
    return _OTHER_NAMES.get(message.role, message.role)


def _join(role: str, messages: Sequence[Message]) -> Message:
    text = SEPARATOR.join(message.content for message in messages if message.content)
    return messages[0].model_copy(update={"role": role, "content": text})

"""Compiles and renders a model's chat template, like transformers. Knows no tokens."""

import json
import logging
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.errors import InternalError, InvalidRequest, StartError, clip
from app.text import template_code
from app.text.tokenizer_config import read_json, read_tokenizer_config

_log = logging.getLogger(__name__)

# The first is transformers' folder; some checkpoints have the second.
_FOLDERS = ("additional_chat_templates", "chat_templates")
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")

Turns = Sequence[tuple[str, str]]
"""The messages of a conversation: pairs of role and text."""


class ChatTemplate:
    """A compiled chat template."""

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        as_parts: bool = False,
        sought: Mapping[str, str] | None = None,
    ) -> None:
        """`variables`: what the template can use besides the messages, such as `eos_token`.

        `as_parts`: give it each text as a list of one text part. Some templates read nothing else.
        `sought`: other strings for those that the template looks for in a message. What it writes stays.
        Raises StartError if `source` is not valid Jinja.
        """
        self.source = source
        self.variables = variables
        self.as_parts = as_parts
        environment = _make_environment()
        code = _parse(environment, source)
        self.literals = template_code.literals(code)
        """The strings in the template: in its code, and those that it writes."""
        template_code.replace_sought(code, sought or {})
        self._template = environment.from_string(code)

    def render(
        self,
        turns: Turns,
        now: datetime | None = None,
        add_generation_prompt: bool = True,
        reasoning: str | None = None,
    ) -> str:
        """`now`: the time that the template sees. None: the current time.

        `reasoning`: what the assistant thought before each answer, in the fields for it. None: no fields.
        Raises INVALID_REQUEST if the template refuses the messages, INTERNAL if it fails.
        """
        now = now or datetime.now()
        try:
            return self._template.render(
                self.variables,
                messages=[self._message(role, text, reasoning) for role, text in turns],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                strftime_now=lambda form: now.strftime(form),
            )
        except _Refusal as refusal:
            message = f"messages are refused by the model's chat template: {clip(str(refusal), 200)}"
            raise InvalidRequest(message, "messages") from None
        except Exception as error:  # a template's code can raise anything
            # The error's own message may quote the chat, so only its type is reported.
            raise InternalError(
                f"the model's chat template failed{_line(error)}: {type(error).__name__}"
            ) from None

    def _message(self, role: str, text: str, reasoning: str | None) -> dict[str, Any]:
        content = [{"type": "text", "text": text}] if self.as_parts else text
        message: dict[str, Any] = {"role": role, "content": content}
        if role == "assistant" and reasoning is not None:
            message |= dict.fromkeys(_REASONING_FIELDS, reasoning)
        return message


def load_chat_template(directory: Path, file: Path | None = None) -> ChatTemplate | None:
    """The model's chat template, or the one in `file`. None: the model has none.

    Raises StartError if a file cannot be read or the template is not valid Jinja.
    """
    config = read_tokenizer_config(directory)
    if file is not None:
        source: str | None = _read(file)
    else:
        source = _find_source(directory, config.content)
    return None if source is None else ChatTemplate(source, config.special_texts)


def _find_source(directory: Path, config: Mapping[str, Any]) -> str | None:
    """Looks where transformers looks, and last where it keeps the templates of multimodal models."""
    if (file := directory / "chat_template.jinja").is_file():
        return _read(file)
    for folder in _FOLDERS:
        if (file := directory / folder / "default.jinja").is_file():
            return _read(file)
    for content in (config, read_json(directory / "chat_template.json")):
        if template := _default_of(content.get("chat_template")):
            return template
    return None


def _default_of(template: object) -> str | None:
    """The template itself, or the one named "default" in a list of named templates."""
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        if "default" not in template:
            _log.warning("the model has chat templates for %(names)s, but no default", {"names": [*template]})
        template = template.get("default")
    return template if isinstance(template, str) else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"the chat template {file.name} cannot be read: {error}") from None


class _Refusal(jinja2.TemplateError):
    """The template called raise_exception, to refuse the messages."""


def _parse(environment: jinja2.Environment, source: str) -> jinja2.nodes.Template:
    try:
        return environment.parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise StartError(f"the model's chat template is not valid Jinja: {error}") from None


def _line(error: Exception) -> str:
    """Says in which line of the template the error is. Tracebacks call the template's file `<template>`."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
    return f" in line {lines[-1]}" if lines else ""


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise _Refusal(message)


def _make_environment() -> ImmutableSandboxedEnvironment:
    """The environment in which transformers compiles chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[template_code.GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment

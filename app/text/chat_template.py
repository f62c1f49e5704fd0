"""Compiles and renders a model's chat template, like transformers. Knows no tokens."""

import json
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.errors import InternalError, InvalidRequest, StartError, clip
from app.text.tokenizer_config import read_json, read_tokenizer_config

Turns = Sequence[tuple[str, str]]
"""The messages of a conversation: pairs of role and text."""


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str, variables: Mapping[str, str], as_parts: bool = False) -> None:
        """`variables`: what the template can use besides the messages, such as `eos_token`.

        `as_parts`: give it each text as a list of one text part. Some templates read nothing else.
        Raises StartError if `source` is not valid Jinja.
        """
        self.source = source
        self.variables = variables
        self.as_parts = as_parts
        self._template = _compile(source)
        constants = self._template.environment.parse(source).find_all(jinja2.nodes.Const)
        self.constants = {node.value for node in constants if isinstance(node.value, str)}
        """The strings in the template's code."""

    def render(self, turns: Turns, now: datetime | None = None) -> str:
        """`now`: the time that the template sees. None: the current time.

        Raises INVALID_REQUEST if the template refuses the messages, INTERNAL if it fails.
        """
        now = now or datetime.now()
        messages = [{"role": role, "content": self._content(text)} for role, text in turns]
        try:
            return self._template.render(
                self.variables,
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
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

    def _content(self, text: str) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": text}] if self.as_parts else text


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
    if (file := directory / "chat_templates" / "default.jinja").is_file():
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
        template = template.get("default")
    return template if isinstance(template, str) else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"the chat template {file.name} cannot be read: {error}") from None


class _Refusal(jinja2.TemplateError):
    """The template called raise_exception, to refuse the messages."""


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training. Here it renders its content unchanged."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str) -> jinja2.Template:
    """Compiles a template in the same environment as transformers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise StartError(f"the model's chat template is not valid Jinja: {error}") from None


def _line(error: Exception) -> str:
    """Says in which line of the template the error is. Tracebacks call the template's file `<template>`."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == "<template>"]
    return f" in line {lines[-1]}" if lines else ""


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise _Refusal(message)

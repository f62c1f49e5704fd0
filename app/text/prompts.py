"""Renders messages with the model's chat template and encodes them. Knows no limits and no HTTP.

A chat template writes control tokens by name, such as `<|im_end|>`. A message may contain such a name, too.
This module encodes the text of messages only as text, so callers cannot inject control tokens.
"""

import itertools
import json
import re
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
from anyio import to_thread
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.errors import InternalError, InvalidRequest, StartError, clip
from app.schemas.chat import Message
from app.text.tokenizer import Tokenizer

# Number of characters. Shorter messages take about a millisecond, so a thread is not worth its cost.
_LONG_PROMPT = 8_192

# Unicode's private use areas.
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class PromptRenderer:
    """The model's chat template and tokenizer."""

    def __init__(self, template: jinja2.Template, variables: dict[str, str], tokenizer: Tokenizer) -> None:
        """`variables`: what the template can use besides the messages, such as `eos_token`."""
        self._template = template
        self._variables = variables
        self._tokenizer = tokenizer
        names = sorted(tokenizer.control_tokens, key=len, reverse=True)
        self._control_token = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._control_ids = frozenset(tokenizer.control_tokens.values())
        self._edge_characters = {name[0] for name in names} | {name[-1] for name in names}

    async def render(self, messages: Sequence[Message]) -> list[int]:
        """Returns the token ids of the prompt. Encodes a long prompt on another thread.

        Raises INVALID_REQUEST if the template refuses the messages, INTERNAL if the template fails.
        """
        if sum(len(message.content) for message in messages) < _LONG_PROMPT:
            return self.encode(messages)
        return await to_thread.run_sync(self.encode, messages)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Like `render`, but on the calling thread."""
        rendered = self._apply(messages, {})
        token_ids = self._tokenizer.encode_marked(rendered)
        stand_ins = self._choose_stand_ins(messages)
        masked = self._apply(messages, stand_ins) if stand_ins else rendered
        control_tokens = self._tokenizer.control_tokens
        # If the text has only the template's control tokens, the tokenizer has read it as intended.
        expected = [control_tokens[name] for name in self._control_token.findall(masked)]
        if [token_id for token_id in token_ids if token_id in self._control_ids] == expected:
            return token_ids
        return self._encode_pieces(masked, stand_ins)

    def _choose_stand_ins(self, messages: Sequence[Message]) -> dict[int, str]:
        """Maps each character that can begin or end a control token's name to one that no message contains.

        Leaves out characters that the messages do not contain. After the replacement, every control token in
        the rendered text comes from the template.
        """
        used = set().union(*(message.content for message in messages))
        unused = (chr(code) for code in itertools.chain(*_PRIVATE_USE) if chr(code) not in used)
        return dict(zip(map(ord, sorted(self._edge_characters & used)), unused, strict=False))

    def _encode_pieces(self, masked: str, stand_ins: dict[int, str]) -> list[int]:
        """Encodes each piece of text between the template's control tokens separately."""
        original = {ord(stand_in): chr(code) for code, stand_in in stand_ins.items()}
        token_ids: list[int] = []
        end = 0
        for match in self._control_token.finditer(masked):
            token_ids += self._encode_text(masked[end : match.start()].translate(original))
            token_ids.append(self._tokenizer.control_tokens[match[0]])
            end = match.end()
        return token_ids + self._encode_text(masked[end:].translate(original))

    def _encode_text(self, text: str) -> list[int]:
        token_ids = self._tokenizer.encode(text)
        for name in self._control_token.findall(text):
            # Some vocabularies have no other tokens for this text.
            if self._tokenizer.control_tokens[name] in token_ids:
                rule = f"messages contain {name}, which the model's tokenizer cannot encode as text"
                raise InvalidRequest(rule, "messages")
        return token_ids

    def _apply(self, messages: Sequence[Message], stand_ins: dict[int, str]) -> str:
        turns = [{"role": turn.role, "content": turn.content.translate(stand_ins)} for turn in messages]
        try:
            return self._template.render(self._variables, messages=turns, add_generation_prompt=True)
        except _Refusal as refusal:
            message = f"messages are refused by the model's chat template: {clip(str(refusal), 200)}"
            raise InvalidRequest(message, "messages") from None
        except Exception as error:  # a template's code can raise anything
            # The error's own message may quote the chat, so only its type is reported.
            raise InternalError(
                f"the model's chat template failed{_line(error)}: {type(error).__name__}"
            ) from None


def load_prompt_renderer(directory: Path, tokenizer: Tokenizer) -> PromptRenderer | None:
    """Returns None if the model has no chat template. Raises StartError if the template cannot be used."""
    config = _read_config(directory)
    source = _read_template(directory, config)
    return None if source is None else PromptRenderer(_compile(source), _special_names(config), tokenizer)


class _Refusal(jinja2.TemplateError):
    """The template called raise_exception, to refuse the messages."""


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training. Here it renders its content unchanged."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str) -> jinja2.Template:
    """Compiles a template in the same environment as transformers. Raises StartError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
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


def _read_config(directory: Path) -> dict[str, Any]:
    file = directory / "tokenizer_config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise StartError(f"the model's tokenizer_config.json cannot be read: {error}") from None
    return content if isinstance(content, dict) else {}


def _read_template(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None


def _special_names(config: dict[str, Any]) -> dict[str, str]:
    """The texts of `bos_token`, `eos_token` …: each is a string, or an object with a string as `content`."""
    values = [(name, value) for name, value in config.items() if name.endswith("_token")]
    texts = [(name, value.get("content") if isinstance(value, dict) else value) for name, value in values]
    return {name: text for name, text in texts if isinstance(text, str)}

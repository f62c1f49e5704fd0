"""Messages -> token ids: the only file that renders a chat template. Knows no limits and no HTTP.

A template is written for text in which control tokens are names such as `<|im_end|>`. A message that
holds such a name must not smuggle the token in, so what callers wrote is never encoded as anything
but text.
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

# Shorter prompts take about a millisecond, less than handing them to a thread is worth.
_LONG_PROMPT = 8_192

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class PromptRenderer:
    """The model's chat template over its tokenizer."""

    def __init__(self, template: jinja2.Template, variables: dict[str, str], tokenizer: Tokenizer) -> None:
        """`variables` are what the template knows besides the messages, such as `eos_token`."""
        self._template = template
        self._variables = variables
        self._tokenizer = tokenizer
        names = sorted(tokenizer.control_tokens, key=len, reverse=True)
        self._control_token = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._control_ids = frozenset(tokenizer.control_tokens.values())
        self._telltales = {name[0] for name in names} | {name[-1] for name in names}

    async def render(self, messages: Sequence[Message]) -> list[int]:
        """Raises ApiError: INVALID_REQUEST if the template refuses, INTERNAL if it fails."""
        if sum(len(message.content) for message in messages) < _LONG_PROMPT:
            return self.encode(messages)
        return await to_thread.run_sync(self.encode, messages)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """As `render`, in this thread."""
        rendered = self._apply(messages, {})
        token_ids = self._tokenizer.encode_marked(rendered)
        disguise = self._disguise(messages)
        disguised = self._apply(messages, disguise) if disguise else rendered
        control_tokens = self._tokenizer.control_tokens
        expected = [control_tokens[name] for name in self._control_token.findall(disguised)]
        if [token_id for token_id in token_ids if token_id in self._control_ids] == expected:
            return token_ids
        return self._encode_pieces(disguised, disguise)

    def _disguise(self, messages: Sequence[Message]) -> dict[int, str]:
        """Code points that can begin or end a control token, to stand-ins that no message holds.

        Empty when the messages hold none of them. With stand-ins in the messages, the control tokens
        in the rendered text are the template's own.
        """
        used = set().union(*(message.content for message in messages))
        stand_ins = (chr(code) for code in itertools.chain(*_PRIVATE_USE) if chr(code) not in used)
        return dict(zip(map(ord, sorted(self._telltales & used)), stand_ins, strict=False))

    def _encode_pieces(self, disguised: str, disguise: dict[int, str]) -> list[int]:
        """What lies between the template's control tokens is encoded as text, each piece on its own."""
        original = {ord(stand_in): chr(code) for code, stand_in in disguise.items()}
        token_ids: list[int] = []
        end = 0
        for match in self._control_token.finditer(disguised):
            token_ids += self._encode_text(disguised[end : match.start()].translate(original))
            token_ids.append(self._tokenizer.control_tokens[match[0]])
            end = match.end()
        return token_ids + self._encode_text(disguised[end:].translate(original))

    def _encode_text(self, text: str) -> list[int]:
        token_ids = self._tokenizer.encode(text)
        for name in self._control_token.findall(text):
            # Some vocabularies have no other token for it.
            if self._tokenizer.control_tokens[name] in token_ids:
                raise InvalidRequest(f"messages hold {name}, which the model cannot read as text", "messages")
        return token_ids

    def _apply(self, messages: Sequence[Message], disguise: dict[int, str]) -> str:
        turns = [{"role": turn.role, "content": turn.content.translate(disguise)} for turn in messages]
        try:
            return self._template.render(self._variables, messages=turns, add_generation_prompt=True)
        except _Refusal as refusal:
            message = f"messages are refused by the model's chat template: {clip(str(refusal), 200)}"
            raise InvalidRequest(message, "messages") from None
        except Exception as error:  # whatever a template's code runs into
            # What it says may quote the messages.
            raise InternalError(
                f"the model's chat template failed{_line(error)}: {type(error).__name__}"
            ) from None


def load_prompt_renderer(directory: Path, tokenizer: Tokenizer) -> PromptRenderer | None:
    """None when the model has no chat template; raises StartError when it has one that cannot be used."""
    config = _read_config(directory)
    source = _read_template(directory, config)
    return None if source is None else PromptRenderer(_compile(source), _special_names(config), tokenizer)


class _Refusal(jinja2.TemplateError):
    """The template called raise_exception."""


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here it only passes them on."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str) -> jinja2.Template:
    """The environment that chat templates are written for: that of transformers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise StartError(f"the model's chat template is broken: {error}") from None


def _line(error: Exception) -> str:
    """Of the template, which is called so in tracebacks."""
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
    """`bos_token`, `eos_token` …: each is a string, or an object that holds one."""
    values = [(name, value) for name, value in config.items() if name.endswith("_token")]
    texts = [(name, value.get("content") if isinstance(value, dict) else value) for name, value in values]
    return {name: text for name, text in texts if isinstance(text, str)}

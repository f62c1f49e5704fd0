"""Reads the files beside `tokenizer.json` that name tokens, like transformers. Knows no templates.

`tokenizer_config.json` names the special tokens and declares added tokens. Older checkpoints have these in
`special_tokens_map.json` and `added_tokens.json`, which transformers reads only if the first file has no
`added_tokens_decoder`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from app.errors import StartError

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""In the order in which transformers adds those that the tokenizer lacks."""
_EXTRA = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class TokenizerConfig:
    """The named special tokens, the declared added tokens, and the content of tokenizer_config.json."""

    content: dict[str, Any]
    special: dict[str, Any]
    """Maps `bos_token`, `eos_token` … to a string, or to an object with a string as `content`."""
    extra: list[Any]
    """Further special tokens: strings or objects."""
    declared: list[AddedToken]
    """Added tokens, ordered by id. The tokenizer may lack them, or have them with other flags."""

    @property
    def special_texts(self) -> dict[str, str]:
        """The special tokens as a chat template sees them: `bos_token` … to text."""
        return {name: _text(value) for name, value in self.special.items()}

    def extend(self, tokenizer: Tokenizer) -> None:
        """Adds the declared tokens and the special tokens to a tokenizer, with the flags declared here."""
        present = {repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
        if missing := [token for token in self.declared if repr(token) not in present]:
            tokenizer.add_tokens(missing)
        known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
        if special := [_special(value, known) for value in (*self.special.values(), *self.extra)]:
            tokenizer.add_special_tokens(special)


def read_tokenizer_config(directory: Path) -> TokenizerConfig:
    """Raises StartError if one of the files cannot be read. All of them may be missing."""
    content = read_json(directory / "tokenizer_config.json")
    names = dict(content)
    declared = content.get("added_tokens_decoder")
    if isinstance(declared, dict):
        tokens = [_added(value) for _, value in sorted(declared.items(), key=lambda entry: int(entry[0]))]
    else:
        names |= read_json(directory / "special_tokens_map.json")
        special = {_text(value) for value in _special_values(names)}
        ids = read_json(directory / "added_tokens.json")
        tokens = [
            AddedToken(text, normalized=text not in special, special=text in special)
            for text in sorted(ids, key=lambda text: int(ids[text]))
        ]
    return TokenizerConfig(content, dict(_named(names)), list(_extra(names)), tokens)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Empty if the file is missing. Raises StartError if it is not valid."""
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise StartError(f"the model's {file.name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise StartError(f"the model's {file.name} must contain a JSON object")
    return content


def _named(names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    others = {name: value for name, value in names.items() if name.endswith("_token")}
    for key in _EXTRA:
        others |= names[key] if isinstance(names.get(key), dict) else {}
    ordered = {name: names.get(name) for name in _NAMES} | others
    yield from ((name, value) for name, value in ordered.items() if _is_token(value))


def _extra(names: dict[str, Any]) -> Iterator[Any]:
    for key in _EXTRA:
        given = names.get(key)
        yield from filter(_is_token, given if isinstance(given, list) else ())


def _special_values(names: dict[str, Any]) -> Iterator[Any]:
    yield from (value for _, value in _named(names))
    yield from _extra(names)


def _is_token(value: Any) -> bool:
    return bool(isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str)))


def _text(value: Any) -> str:
    return str(value["content"] if isinstance(value, dict) else value)


def _added(value: dict[str, Any]) -> AddedToken:
    return AddedToken(value["content"], **{flag: value[flag] for flag in _FLAGS if flag in value})


def _special(value: Any, known: dict[str, AddedToken]) -> AddedToken:
    """The tokenizer's own token of this text keeps its flags, except that it becomes special."""
    token = known.get(_text(value))
    if token is None:
        token = _added(value) if isinstance(value, dict) else AddedToken(value, normalized=False)
    token.special = True
    return token

"""The model's tokenizer: text to token ids, and the bytes of each token. Knows no chats and no requests."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from app.errors import StartError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class TokenText:
    """The name and the bytes of one token of the vocabulary."""

    name: str
    """How answers show the token: its text, or a control token's name, such as `<|im_end|>`."""
    raw: bytes
    """The token's bytes, perhaps only a part of a character. For a control token, the bytes of its name."""
    is_control: bool = False

    @property
    def data(self) -> bytes:
        """The bytes that the token adds to a text. A control token adds none."""
        return b"" if self.is_control else self.raw


class Tokenizer:
    """The tokenizer in `tokenizer.json`. Thread-safe, because nothing changes after construction."""

    def __init__(self, directory: Path) -> None:
        """Raises StartError if tokenizer.json cannot be loaded."""
        self.file = directory / "tokenizer.json"
        try:
            # Two objects, because each either recognises control tokens in a text or does not.
            self._marked = tokenizers.Tokenizer.from_file(str(self.file))
            self._plain = tokenizers.Tokenizer.from_file(str(self.file))
        except Exception as error:  # tokenizers raises nothing more precise
            raise StartError(f"the model's tokenizer.json cannot be loaded: {error}") from error
        self._plain.encode_special_tokens = True
        for tokenizer in (self._marked, self._plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        added = self._marked.get_added_tokens_decoder()
        self.control_tokens = {token.content: token_id for token_id, token in added.items() if token.special}
        """The id of each special token, by name."""
        decoders = _decoders(self.file)
        self.strips_leading_space = any(map(_strips_leading_space, decoders))
        """Whether decoding drops one space at the start of a text."""
        self._texts = self._read_vocabulary({decoder["type"] for decoder in decoders})

    @property
    def size(self) -> int:
        """The highest token id, plus 1."""
        return len(self._texts)

    def encode(self, text: str) -> list[int]:
        """Encodes the names of control tokens as text. Adds no control tokens."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_marked(self, text: str) -> list[int]:
        """Encodes the name of a control token as that control token."""
        return self._marked.encode(text, add_special_tokens=False).ids

    def encode_strings(self, text: str) -> tuple[list[str], list[int]]:
        """Like `encode`, but returns the vocabulary's string for each token as well."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        return encoding.tokens, encoding.ids

    def decode(self, token_ids: list[int]) -> str:
        """Decodes token ids to text. Writes control tokens by name."""
        return self._marked.decode(token_ids, skip_special_tokens=False)

    def text_of(self, token_id: int) -> TokenText:
        """The token with this id. An id that is not in the vocabulary has an empty name and no bytes."""
        return self._texts[token_id] if token_id < len(self._texts) else TokenText("", b"")

    def _read_vocabulary(self, decoders: set[str]) -> list[TokenText]:
        added = self._marked.get_added_tokens_decoder()
        vocabulary = self._marked.get_vocab(with_added_tokens=True)
        texts = [TokenText("", b"")] * (max(vocabulary.values()) + 1)
        for string, token_id in vocabulary.items():
            if token_id in added:
                content = added[token_id].content
                texts[token_id] = TokenText(content, content.encode(), added[token_id].special)
            else:
                data = self._bytes_of(string, token_id, decoders)
                texts[token_id] = TokenText(data.decode(errors="replace"), data)
        return texts

    def _bytes_of(self, string: str, token_id: int, decoders: set[str]) -> bytes:
        if "ByteLevel" in decoders and _BYTE_OF_CHARACTER.keys() >= set(string):
            return bytes(_BYTE_OF_CHARACTER[character] for character in string)
        if "ByteFallback" in decoders and (match := _BYTE_TOKEN.fullmatch(string)):
            return bytes([int(match[1], 16)])
        if decoders & {"ByteFallback", "Metaspace"}:
            return string.replace("▁", " ").encode()
        return self._marked.decode([token_id]).encode()


def _decoders(file: Path) -> list[dict[str, Any]]:
    decoder = json.loads(file.read_text(encoding="utf-8"))["decoder"] or {"type": "none"}
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _strips_leading_space(decoder: dict[str, Any]) -> bool:
    if decoder["type"] == "Strip":
        return bool(decoder["start"])
    return decoder["type"] == "Metaspace" and bool(decoder.get("prepend_scheme") != "never")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's mapping of bytes to visible characters: unprintable bytes get characters from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(moved)}


_BYTE_OF_CHARACTER = _byte_level_alphabet()

"""The model's tokenizer: text to token ids, and each token's own bytes. Knows no chat and no requests."""

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
    """What one token of the vocabulary stands for."""

    name: str
    """How the token is shown: its text, or a control token's name such as `<|im_end|>`."""
    raw: bytes
    """Its own bytes, perhaps only a part of a character; a control token's are its name's."""
    is_control: bool = False

    @property
    def data(self) -> bytes:
        """What it adds to a text: nothing, for a control token."""
        return b"" if self.is_control else self.raw


class Tokenizer:
    """Loads `tokenizer.json`. Thread-safe: nothing changes after construction."""

    def __init__(self, directory: Path) -> None:
        """Raises StartError."""
        self.file = directory / "tokenizer.json"
        try:
            # Whether control tokens are recognised in a text is a setting of the object: hence two.
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
        """The special tokens' names and ids."""
        decoders = _decoders(self.file)
        self.strips_leading_space = any(map(_strips_leading_space, decoders))
        """Whether decoding drops one space at the start of a text."""
        self._texts = self._read_vocabulary({decoder["type"] for decoder in decoders})

    @property
    def size(self) -> int:
        """Highest id + 1."""
        return len(self._texts)

    def encode(self, text: str) -> list[int]:
        """Control tokens that are written in the text stay text; none are added."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_marked(self, text: str) -> list[int]:
        """A control token's name becomes the control token."""
        return self._marked.encode(text, add_special_tokens=False).ids

    def encode_strings(self, text: str) -> tuple[list[str], list[int]]:
        """As `encode`, with the vocabulary's own strings."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        return encoding.tokens, encoding.ids

    def decode(self, token_ids: list[int]) -> str:
        """Control tokens are shown by name."""
        return self._marked.decode(token_ids, skip_special_tokens=False)

    def text_of(self, token_id: int) -> TokenText:
        """An id that the vocabulary leaves out stands for nothing."""
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
    """GPT-2's way to write bytes as visible characters: the unprintable ones move up to U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(moved)}


_BYTE_OF_CHARACTER = _byte_level_alphabet()

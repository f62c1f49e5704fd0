"""The model's tokenizer: text to token ids, and the bytes of each token. Knows no chats and no requests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from app.errors import StartError
from app.text.decoding.decoder import Decoder, TokenStream
from app.text.plain_encoder import PlainEncoder
from app.text.tokenizer_config import read_tokenizer_config


@dataclass(frozen=True)
class TokenText:
    """The name and the bytes of one token of the vocabulary."""

    name: str
    """How answers show the token: its text, or a control token's name, such as `<|im_end|>`."""
    raw: bytes
    """The bytes that the token adds in the middle of a text, perhaps only a part of a character. A control
    token adds none: these are the bytes of its name."""
    is_control: bool = False


class Tokenizer:
    """The tokenizer in `tokenizer.json`. Thread-safe: after construction, it only remembers tokens."""

    def __init__(self, directory: Path, template_texts: Sequence[str] = ()) -> None:
        """`template_texts`: what the chat template renders. The added tokens in it are reserved.

        Raises StartError if a file of the tokenizer cannot be loaded.
        """
        self.file = directory / "tokenizer.json"
        try:
            self._marked = tokenizers.Tokenizer.from_file(str(self.file))
        except Exception as error:  # tokenizers raises nothing more precise
            raise StartError(f"the model's tokenizer.json cannot be loaded: {error}") from error
        self._marked.no_truncation()
        self._marked.no_padding()
        config = read_tokenizer_config(directory)
        config.extend(self._marked)
        self.eos_token_id: int | None = self._marked.token_to_id(config.special_texts.get("eos_token", ""))
        """The token that tokenizer_config.json calls `eos_token`. None: it names none."""
        added = self._marked.get_added_tokens_decoder()
        self.control_tokens = {token.content: token_id for token_id, token in added.items() if token.special}
        """The id of each special token, by name."""
        self.reserved_tokens = self.control_tokens | {
            token.content: token_id
            for token_id, token in added.items()
            if _is_in(token.content, template_texts)
        }
        """The id of each token that only the chat template may write, by name."""
        self.reserved_ids = frozenset(self.reserved_tokens.values())
        self.plain = PlainEncoder(self._marked, self.reserved_tokens)
        self.size = max(self._marked.get_vocab().values(), default=-1) + 1
        """The highest token id, plus 1."""
        self._decoder = Decoder(self._marked)
        self._control_names = {token_id: name for name, token_id in self.control_tokens.items()}
        self._texts: dict[int, TokenText] = {}

    def encode(self, text: str) -> list[int]:
        """Encodes all of a text as text, also the names of reserved tokens. Adds no tokens."""
        return self.plain.encode(text)

    def encode_marked(self, text: str) -> list[int]:
        """Encodes the name of an added token as that token."""
        return self._marked.encode(text, add_special_tokens=False).ids

    def encode_strings(self, text: str) -> tuple[list[str], list[int]]:
        """Like `encode`, but returns the vocabulary's string for each token as well."""
        token_ids = self.plain.encode(text)
        return [self._marked.id_to_token(token_id) or "" for token_id in token_ids], token_ids

    def decode(self, token_ids: list[int]) -> str:
        """Decodes token ids to text. Writes control tokens by name."""
        return self._marked.decode(token_ids, skip_special_tokens=False)

    def decode_stream(self) -> TokenStream:
        """Begins a text that is decoded token by token. Control tokens add nothing to it."""
        return self._decoder.stream()

    def text_of(self, token_id: int) -> TokenText:
        """The token with this id. An id that is not in the vocabulary has an empty name and no bytes."""
        if token_id not in self._texts:
            self._texts[token_id] = self._read(token_id)
        return self._texts[token_id]

    def pieces(self) -> Iterator[bytes]:
        """The bytes of all tokens, by id, as in `text_of`. Control tokens have none. Remembers nothing."""
        decoder = Decoder(self._marked)
        return map(decoder.bytes_of, range(self.size))

    def _read(self, token_id: int) -> TokenText:
        name = self._control_names.get(token_id)
        if name is not None:
            return TokenText(name, name.encode(), is_control=True)
        data = self._decoder.bytes_of(token_id)
        return TokenText(data.decode(errors="replace"), data)


def _is_in(name: str, texts: Sequence[str]) -> bool:
    """Whether a name is in one of the texts. White space never is: templates write it as ordinary text."""
    return not name.isspace() and any(name in text for text in texts)

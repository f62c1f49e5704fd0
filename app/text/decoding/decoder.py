"""A tokenizer's decoder: token ids to text. Knows the vocabulary's strings, but no requests."""

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Protocol

import tokenizers

from app.text.decoding.pieces import Piece, PieceStage
from app.text.decoding.steps import BYTE_LEVEL, FUSE, steps_of
from app.text.decoding.texts import TextStage


class TokenStream(Protocol):
    """The decoding of one text.

    `push` and `finish` return the texts of the tokens in order: one for each token, perhaps empty. A token's
    text may come later than the token. `finish` may also return texts that belong to no token.
    """

    def push(self, token_id: int) -> Sequence[str]:
        """Adds a token. Returns the texts that no later token can change."""

    def finish(self) -> Sequence[str]:
        """Ends the text. Returns the rest."""


class Decoder:
    """Decodes like `tokenizers.Tokenizer.decode(..., skip_special_tokens=True)`, but token by token.

    Thread-safe: it only remembers strings, and they are the same for every text.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Raises StartError if the tokenizer's decoder is unknown."""
        decoder = tokenizer.decoder
        # This state is the decoder's JSON. In it, the library has added what older files leave out.
        steps = steps_of(None if decoder is None else json.loads(decoder.__getstate__()))
        joint = next((number for number, step in enumerate(steps, 1) if step.joins), len(steps))
        self._steps = [step for step in steps[:joint] if step is not FUSE]
        self._text_steps = steps[joint:]
        self._prepared = len(list(takewhile(lambda step: step.keeps_no_state, self._steps)))
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        self._skipped = {token.content for token in added if token.special}
        self._strings: dict[int, str | None] = {}
        self._bytes: dict[int, bytes] = {}

    def stream(self) -> TokenStream:
        """Begins a text."""
        if self._steps == [BYTE_LEVEL] and not self._text_steps:
            return _ByteLevelStream(self.bytes_of, self._bytes)
        steps = self._steps[self._prepared :]
        stages = [step.of_pieces() for step in steps[:-1]]
        stages += [(step.of_last_pieces or step.of_pieces)() for step in steps[-1:]]
        return _StagedStream(self, stages, [make() for step in self._text_steps for make in step.of_text])

    def string_of(self, token_id: int) -> str | None:
        """A token's string, changed by the first decoders if these keep no state. None: it adds no string."""
        if token_id not in self._strings:
            string: str | None = self._tokenizer.id_to_token(token_id)
            self._strings[token_id] = None if string in self._skipped else self._prepare(string)
        return self._strings[token_id]

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that a token adds in the middle of a text, perhaps only a part of a character."""
        if token_id not in self._bytes:
            string = self.string_of(token_id)
            self._bytes[token_id] = b"" if string is None else self._bytes_in_text(string)
        return self._bytes[token_id]

    def _prepare(self, string: str | None) -> str | None:
        if string is not None:
            for step in self._steps[: self._prepared]:
                string = step.inside(string)
        return string

    def _bytes_in_text(self, text: str) -> bytes:
        for step in self._steps[self._prepared :]:
            data = step.bytes_of(text)
            if data is not None:
                return data
            text = step.inside(text)
        for step in self._text_steps:
            text = step.inside_text(text)
        return text.encode()


class _ByteLevelStream:
    """Most models' decoder: ByteLevel alone. Tokens are bytes, and the bytes are UTF-8."""

    def __init__(self, bytes_of: Callable[[int], bytes], remembered: Mapping[int, bytes]) -> None:
        self._bytes_of, self._remembered = bytes_of, remembered
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def push(self, token_id: int) -> Sequence[str]:
        try:
            data = self._remembered[token_id]
        except KeyError:
            data = self._bytes_of(token_id)
        return (self._decode(data),)

    def finish(self) -> Sequence[str]:
        return (self._decode(b"", True),)


class _StagedStream:
    """Any other decoder: stages for the strings of tokens, and then stages for the joined text."""

    def __init__(
        self, decoder: Decoder, piece_stages: Sequence[PieceStage], text_stages: Sequence[TextStage]
    ) -> None:
        self._string_of = decoder.string_of
        self._piece_stages, self._text_stages = piece_stages, text_stages
        self._next: Piece = []

    def push(self, token_id: int) -> Sequence[str]:
        string = self._string_of(token_id)
        self._next.append(string or "")
        if string is None:  # it gets its place in the text together with the next token
            return ()
        pieces, self._next = [self._next], []
        for stage in self._piece_stages:
            pieces = [out for piece in pieces for out in stage.push(piece)]
        texts = [part for piece in pieces for part in piece]
        for text_stage in self._text_stages:
            texts = [text_stage.push(text) for text in texts]
        return texts

    def finish(self) -> Sequence[str]:
        pieces: list[Piece] = []
        for stage in self._piece_stages:
            pieces = [out for piece in pieces for out in stage.push(piece)] + stage.finish()
        texts = [part for piece in pieces for part in piece]
        for text_stage in self._text_stages:
            texts = [*(text_stage.push(text) for text in texts), text_stage.finish()]
        return texts

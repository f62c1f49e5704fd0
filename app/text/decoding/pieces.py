"""The part of a decoder that works on token strings. Knows no vocabulary.

A decoder of `tokenizers` turns a list of strings into another list of strings. Each stage here does the same
for a list that is still growing. A string is a `Piece`: a list with one part for each token that the string
comes from, so that log probabilities can be matched with the text.
"""

import codecs
import re
from collections.abc import Callable
from typing import Protocol

Piece = list[str]
Change = Callable[[str], str]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


class PieceStage(Protocol):
    """One decoder, for one text."""

    def push(self, piece: Piece) -> list[Piece]:
        """Adds the next string. Returns the strings that no later string can change."""

    def finish(self) -> list[Piece]:
        """Ends the list of strings. Returns the rest."""


class PerString:
    """Changes each string on its own; the first one perhaps differently."""

    def __init__(self, first: Change, other: Change) -> None:
        self._change, self._other = first, other

    def push(self, piece: Piece) -> list[Piece]:
        changed = _changed(piece, self._change)
        self._change = self._other
        return [changed]

    def finish(self) -> list[Piece]:
        return []


class LastDiffers:
    """Changes each string on its own, the last one differently. Returns a string when the next one comes."""

    def __init__(self, change: Change, last: Change) -> None:
        self._change, self._last = change, last
        self._held: list[Piece] = []

    def push(self, piece: Piece) -> list[Piece]:
        held, self._held = self._held, [piece]
        return [_changed(piece, self._change) for piece in held]

    def finish(self) -> list[Piece]:
        return [_changed(piece, self._last) for piece in self._held]


class WordEnds:
    """BPEDecoder as the last decoder: the suffix that ends a word becomes a space, but not in the last token.

    Returns what comes before the suffix at once, and the space together with the next token.
    """

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held = ""

    def push(self, piece: Piece) -> list[Piece]:
        text = "".join(piece)
        start = text.find(self._suffix)
        head = text if start < 0 else text[:start]
        out = self._held.replace(self._suffix, " ") + head
        self._held = text[len(head) :]
        return [_replaced(piece, out)]

    def finish(self) -> list[Piece]:
        return [[self._held.replace(self._suffix, "")]]


class ByteRuns:
    """ByteFallback: consecutive byte tokens, such as `<0xE2>`, become one string if they are UTF-8.

    If they are not, each of them becomes U+FFFD. One wrong byte decides this for the whole run. So a run is
    held back until it ends, or until it has a wrong byte: until then, no part of it is certain.
    """

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._run: list[tuple[Piece, str]] = []
        """The byte tokens held back, each with the character that its byte completes, if any."""
        self._broken = False
        """Whether the run is not UTF-8, whatever comes next."""

    def push(self, piece: Piece) -> list[Piece]:
        data = byte_of("".join(piece))
        if data is None:
            return [*self.finish(), piece] if self._run or self._broken else [piece]
        self._run.append((piece, self._decoded(data)))
        return self._replaced() if self._broken else []

    def finish(self) -> list[Piece]:
        self._decoded(b"", final=True)
        pieces = self._replaced() if self._broken else self._joined()
        self._utf8.reset()
        self._broken = False
        return pieces

    def _decoded(self, data: bytes, final: bool = False) -> str:
        if not self._broken:
            try:
                return self._utf8.decode(data, final)
            except UnicodeDecodeError:
                self._broken = True
        return ""

    def _joined(self) -> list[Piece]:
        run, self._run = self._run, []
        return [[part for piece, text in run for part in _replaced(piece, text)]] if run else []

    def _replaced(self) -> list[Piece]:
        run, self._run = self._run, []
        return [_replaced(piece, "\ufffd") for piece, _ in run]


class Repeats:
    """CTC: a string that repeats the one before it is dropped, and so is a string that becomes empty."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._previous: str | None = None
        self._dropped: Piece = []
        """One part for each token of the strings that were dropped since the last one that was not."""

    def push(self, piece: Piece) -> list[Piece]:
        text = "".join(piece)
        repeated, self._previous = text == self._previous, text
        changed = "" if repeated else self._change(text)
        self._dropped += _replaced(piece, changed)
        if not changed:
            return []
        kept, self._dropped = self._dropped, []
        return [kept]

    def finish(self) -> list[Piece]:
        return []


class ByteCharacters:
    """ByteLevel: characters that stand for bytes become these bytes, and all bytes together become text."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, piece: Piece) -> list[Piece]:
        return [_changed(piece, lambda text: self._utf8.decode(bytes_of(text)))]

    def finish(self) -> list[Piece]:
        return [[self._utf8.decode(b"", final=True)]]


def byte_of(text: str) -> bytes | None:
    """The byte for which a token of ByteFallback stands. `tokenizers` also reads `<0x+A>`."""
    match = _BYTE_TOKEN.fullmatch(text) if len(text) == 6 else None
    return bytes([int(match[1], 16)]) if match else None


def bytes_of(text: str) -> bytes:
    """The bytes of a token of ByteLevel. If not all of its characters stand for bytes, none of them does."""
    try:
        return bytes([BYTES[character] for character in text])
    except KeyError:
        return text.encode()


def _changed(piece: Piece, change: Change) -> Piece:
    if len(piece) == 1:
        return [change(piece[0])]
    text = "".join(piece)
    changed = change(text)
    return piece if changed == text else _replaced(piece, changed)


def _replaced(piece: Piece, text: str) -> Piece:
    """A string of the same tokens with another text, which the last of them gets."""
    return [*[""] * (len(piece) - 1), text]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's mapping of bytes to visible characters: unprintable bytes get characters from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(moved)}


BYTES = _byte_level_alphabet()
"""The byte for which each character of ByteLevel's alphabet stands."""

"""The part of a decoder that works on the joined text, after Fuse or ByteLevel. Knows no tokens.

To the decoders that follow, the joined text is a list with one string, which is both the first and the last.
"""

from collections.abc import Callable
from typing import Protocol


class TextStage(Protocol):
    """One decoder, for one text."""

    def push(self, text: str) -> str:
        """Adds the next part of the text. Returns what no later part can change."""

    def finish(self) -> str:
        """Ends the text. Returns the rest."""


class Replacing:
    """Replaces a string. Holds back what may become that string."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern, self._content = pattern, content
        self._held = ""

    def push(self, text: str) -> str:
        *before, last = (self._held + text).split(self._pattern)
        end = len(last) - _beginning(self._pattern, last)
        self._held = last[end:]
        return self._content.join([*before, last[:end]])

    def finish(self) -> str:
        return self._held


class Whole:
    """Changes the text only at its end, because any later part may change what comes before it."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change
        self._parts: list[str] = []

    def push(self, text: str) -> str:
        self._parts.append(text)
        return ""

    def finish(self) -> str:
        return self._change("".join(self._parts))


class WholeUnless:
    """Changes the text at its end, unless it is `decided` earlier that the text stays as it is."""

    def __init__(self, change: Callable[[str], str], decided: Callable[[str], bool]) -> None:
        self._change, self._decided = change, decided
        self._held: str | None = ""

    def push(self, text: str) -> str:
        if self._held is None:
            return text
        self._held += text
        if not self._decided(self._held):
            return ""
        held, self._held = self._held, None
        return held

    def finish(self) -> str:
        return self._change(self._held) if self._held else ""


class Stripping:
    """Removes up to `start` leading and up to `stop` trailing characters, if they are `character`."""

    def __init__(self, character: str, start: int, stop: int) -> None:
        self._character, self._start, self._stop = character, start, stop
        self._held = ""

    def push(self, text: str) -> str:
        if self._start and text:
            rest = text.lstrip(self._character)
            cut = min(self._start, len(text) - len(rest))
            self._start = 0 if rest else self._start - cut
            text = text[cut:]
        if not self._stop:
            return text
        text = self._held + text
        trailing = len(text) - len(text.rstrip(self._character))
        end = len(text) - min(trailing, self._stop)
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        return ""


def _beginning(pattern: str, text: str) -> int:
    """Length of the longest true prefix of the pattern that the text ends with."""
    longest = min(len(pattern) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if text.endswith(pattern[:length])), 0)

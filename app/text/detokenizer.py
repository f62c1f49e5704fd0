"""Tokens' bytes -> text as it becomes certain. Knows stop sequences; knows no tokens' ids and no requests."""

import codecs
from collections.abc import Iterable


class StopString:
    """How much of a stop sequence the text so far ends with (Knuth, Morris and Pratt's automaton)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._fallbacks = _fallbacks(text)
        self.matched = 0
        """Characters of the sequence, from its first, that the text ends with."""

    def find(self, text: str) -> int | None:
        """Goes on through `text`; how far into it the sequence is first complete, if it is."""
        for position, character in enumerate(text):
            self.matched = _advance(self._text, self._fallbacks, self.matched, character)
            if self.matched == len(self._text):
                return position + 1
        return None


def _advance(text: str, fallbacks: list[int], matched: int, character: str) -> int:
    while matched and text[matched] != character:
        matched = fallbacks[matched]
    return matched + (text[matched] == character)


def _fallbacks(text: str) -> list[int]:
    """For each length of matched text: the longest shorter one that the text then ends with as well."""
    fallbacks = [0, 0]
    for character in text[1:]:
        fallbacks.append(_advance(text, fallbacks, fallbacks[-1], character))
    return fallbacks


class Detokenizer:
    """The text of one choice.

    A character is held back until it is whole, and what may become a stop sequence until that is
    decided. Time is linear in the text.
    """

    def __init__(self, stop: Iterable[str] = (), strips_leading_space: bool = False) -> None:
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = [StopString(text) for text in stop]
        self._strip = strips_leading_space
        self._held = ""
        self.decoded = 0
        """Characters so far, those held back included."""
        self.released = 0
        """Characters given out."""
        self.stopped = False
        """Whether a stop sequence has ended the text."""

    def push(self, data: bytes) -> str:
        """One token's bytes; returns the text that is now certain."""
        return self._take(self._characters.decode(data))

    def finish(self) -> str:
        """No token follows: returns what was held back. Incomplete characters become U+FFFD."""
        if self.stopped:
            return ""
        text = self._take(self._characters.decode(b"", final=True))
        return text if self.stopped else text + self._release(len(self._held))

    def _take(self, text: str) -> str:
        if self._strip and text:
            text = text.removeprefix(" ")
            self._strip = False
        self.decoded += len(text)
        if not self._stops:
            self.released = self.decoded
            return text
        self._held += text
        cut = self._find_stop(text)
        if cut is not None:
            self.stopped = True
            return self._release(cut)
        return self._release(len(self._held) - max(stop.matched for stop in self._stops))

    def _find_stop(self, text: str) -> int | None:
        """Where in the held text the first stop sequence begins, once `text` was added to it."""
        before = len(self._held) - len(text)
        ends = [(stop.find(text), stop.matched) for stop in self._stops]
        return min((before + end - length for end, length in ends if end is not None), default=None)

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self.released += count
        return text

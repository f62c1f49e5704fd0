"""Converts the bytes of tokens to text, and finds stop sequences. Knows no token ids and no requests."""

import codecs
from collections.abc import Iterable


class StopString:
    """Searches a growing text for one stop sequence, with the algorithm of Knuth, Morris and Pratt."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._fallbacks = _fallbacks(text)
        self.matched = 0
        """Length of the longest prefix of the stop sequence that the text so far ends with."""

    def find(self, text: str) -> int | None:
        """Reads the next part of the text. Returns the end of the first match in `text`, or None."""
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
    """For each matched length: the length of the next shorter prefix that the matched text ends with."""
    fallbacks = [0, 0]
    for character in text[1:]:
        fallbacks.append(_advance(text, fallbacks, fallbacks[-1], character))
    return fallbacks


class Detokenizer:
    """Produces the text of one choice.

    It holds back an incomplete character, and text that may become a stop sequence, until the next tokens
    decide. The total time is linear in the length of the text.
    """

    def __init__(self, stop: Iterable[str] = (), strips_leading_space: bool = False) -> None:
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = [StopString(text) for text in stop]
        self._strip = strips_leading_space
        self._held = ""
        self.decoded = 0
        """Number of characters decoded so far, including those held back."""
        self.released = 0
        """Number of characters returned so far."""
        self.stopped = False
        """Whether the text has ended at a stop sequence."""

    def push(self, data: bytes) -> str:
        """Adds the bytes of one token. Returns the text that no later token can change."""
        return self._take(self._characters.decode(data))

    def finish(self) -> str:
        """Ends the text. Returns what was held back, with U+FFFD for an incomplete character."""
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
        """Start of the first stop sequence in the held text, which ends with the new `text`; or None."""
        before = len(self._held) - len(text)
        ends = [(stop.find(text), stop.matched) for stop in self._stops]
        return min((before + end - length for end, length in ends if end is not None), default=None)

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self.released += count
        return text

"""Ends a growing text at a stop sequence. Knows no tokens and no requests."""

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


class StopFilter:
    """Passes on the text of one choice, up to the first stop sequence.

    It holds back text that may become a stop sequence, until the next part decides. The total time is linear
    in the length of the text.
    """

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self._stops = [StopString(text) for text in stop]
        self._held = ""
        self.length = 0
        """Number of characters so far, including those held back."""
        self.released = 0
        """Number of characters returned so far."""
        self.stopped = False
        """Whether the text has ended at a stop sequence."""

    def push(self, text: str) -> str:
        """Adds the next part of the text. Returns what is not held back: nothing after a stop sequence."""
        if not self._stops:
            self.length += len(text)
            self.released = self.length
            return text
        return "" if self.stopped else self._search(text)

    def finish(self) -> str:
        """Ends the text. Returns what was held back."""
        return "" if self.stopped else self._release(len(self._held))

    def _search(self, text: str) -> str:
        self.length += len(text)
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

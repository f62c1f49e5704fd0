"""Hides the names of reserved tokens in messages while a chat template is rendered.

After that, each name in the rendered text was written by the template. Knows no token ids and no tokenizer.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

# Unicode's private use areas.
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class Mask:
    """Replaces the characters that begin or end a name by stand-ins, which no message contains."""

    def __init__(self, names: Iterable[str], constants: Iterable[str] = ()) -> None:
        """`constants`: the strings in the template's code, which it may look for in a message."""
        self._names = frozenset(names)
        self._lengths = sorted({len(name) for name in self._names}, reverse=True)
        self._first = _any_of({name[0] for name in self._names})
        self._edges = {name[0] for name in self._names} | {name[-1] for name in self._names}
        kept = [text for text in constants if self._edges & set(text) and not self._resembles_name(text)]
        self._kept_or_edge = _any_of([*sorted(kept, key=len, reverse=True), *self._edges])

    def choose_stand_ins(self, texts: Iterable[str]) -> dict[int, str]:
        """Maps each character to be masked to its stand-in. Leaves out characters that the texts lack."""
        used = set().union(*texts)
        unused = (chr(code) for code in itertools.chain(*_PRIVATE_USE) if chr(code) not in used)
        return dict(zip(map(ord, sorted(self._edges & used)), unused, strict=False))

    def hide(
        self, turns: Iterable[tuple[str, str]], stand_ins: Mapping[int, str], keep_constants: bool = False
    ) -> list[tuple[str, str]]:
        """Masks the texts of messages: pairs of role and text.

        `keep_constants`: leaves the strings of the template's code as they are, so that a template that looks
        for one of them, such as `</think>`, still finds it.
        """

        def mask(match: re.Match[str]) -> str:
            return match[0] if len(match[0]) > 1 else match[0].translate(stand_ins)

        if keep_constants:
            return [(role, self._kept_or_edge.sub(mask, text)) for role, text in turns]
        return [(role, text.translate(stand_ins)) for role, text in turns]

    def split(self, text: str) -> tuple[list[str], list[str]]:
        """Splits a text at the names. Returns the texts between them, one more than names, and the names."""
        texts, names = [], []
        end = 0
        for start, name in self._find(text):
            texts.append(text[end:start])
            names.append(name)
            end = start + len(name)
        return [*texts, text[end:]], names

    def _find(self, text: str) -> Iterator[tuple[int, str]]:
        """The names in a text, from left to right, and where each starts. Prefers the longest one.

        Some tokenizers have thousands of reserved tokens, so one regular expression for all of them is slow.
        """
        end = 0
        for match in self._first.finditer(text):
            start = match.start()
            candidates = (text[start : start + length] for length in self._lengths)
            name = next((name for name in candidates if name in self._names), None) if start >= end else None
            if name is not None:
                yield start, name
                end = start + len(name)

    def _resembles_name(self, text: str) -> bool:
        return bool(self.split(text)[1]) or any(text in name for name in self._names)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")

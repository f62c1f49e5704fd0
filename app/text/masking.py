"""Hides the names of reserved tokens in messages while a chat template is rendered.

After that, each name in the rendered text was written by the template. Knows no token ids and no tokenizer.
"""

import itertools
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping

# Unicode's private use areas.
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))

Turns = Iterable[tuple[str, str]]
"""The messages of a conversation: pairs of role and text."""


class Mask:
    """Replaces the characters that begin or end a name by stand-ins, which no message contains."""

    def __init__(self, names: Iterable[str], literals: Iterable[str] = ()) -> None:
        """`literals`: the strings in the template, which it may look for in a message."""
        self._names = frozenset(names)
        self._lengths = sorted({len(name) for name in self._names}, reverse=True)
        self._first = _any_of({name[0] for name in self._names})
        self._edges = {name[0] for name in self._names} | {name[-1] for name in self._names}
        literals = [text for text in literals if self._edges & set(text)]
        sought = {name for text in literals for name in self.split(text)[1]}
        nonce = secrets.token_hex(16)
        self.secret_names = {name: f"{nonce}:{number}:" for number, name in enumerate(sorted(sought))}
        """Secret names for the names that the template may look for. No message contains them."""
        kept = [text for text in literals if not self._resembles_name(text)]
        longest_first = sorted([*kept, *self.secret_names], key=len, reverse=True)
        self._shown_or_edge = _any_of([*longest_first, *self._edges])

    def choose_stand_ins(self, turns: Turns) -> dict[int, str] | None:
        """Maps each character to be masked to its stand-in. Leaves out characters that the texts lack.

        None: the texts contain nearly all characters that could stand in.
        """
        used = set().union(*(text for _, text in turns))
        unused = (chr(code) for code in itertools.chain(*_PRIVATE_USE) if chr(code) not in used)
        masked = sorted(self._edges & used)
        stand_ins = dict(zip(map(ord, masked), unused, strict=False))
        return stand_ins if len(stand_ins) == len(masked) else None

    def hide(self, turns: Turns, stand_ins: Mapping[int, str]) -> list[tuple[str, str]]:
        """Masks the texts of messages."""
        return [(role, text.translate(stand_ins)) for role, text in turns]

    def rename(self, turns: Turns, stand_ins: Mapping[int, str]) -> list[tuple[str, str]]:
        """Masks the texts, except what the template may look for, such as `</think>`.

        It leaves the strings of the template as they are, and gives `secret_names` to names among them.
        """

        def mask(match: re.Match[str]) -> str:
            text = match[0]
            return self.secret_names.get(text) or (text if len(text) > 1 else text.translate(stand_ins))

        return [(role, self._shown_or_edge.sub(mask, text)) for role, text in turns]

    def restore(self, text: str, stand_ins: Mapping[int, str]) -> str:
        """Undoes `hide` and `rename` in a rendered text."""
        for name, secret in self.secret_names.items():
            text = text.replace(secret, name)
        return text.translate({ord(stand_in): chr(code) for code, stand_in in stand_ins.items()})

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

"""Which tokens go on with a word, and which begin one. Knows no tokenizer."""

from collections.abc import Iterable

import numpy as np

_FIRST_LETTER_WITHOUT_SPACES = "\u0e00"
"""From Thai on, most scripts do not separate words by spaces. There, each token counts as a word."""
_HANGUL = ("\uac00", "\ud7a3")


def continuation_bits(pieces: Iterable[bytes]) -> bytes:
    """A bit for each token, lowest bit first: 1 if the token goes on with the word of the token before it.

    `pieces`: the bytes that each token adds in the middle of a text. A token goes on with a word if it begins
    with a letter, a digit or an apostrophe. So a space, a line break or another mark begins a word.
    """
    flags = [_continues(piece.decode(errors="replace")) for piece in pieces]
    return np.packbits(np.array(flags, np.bool_), bitorder="little").tobytes()


def _continues(text: str) -> bool:
    first = text[:1]
    if first in ("'", "’"):
        return True
    is_spaced = first < _FIRST_LETTER_WITHOUT_SPACES or _HANGUL[0] <= first <= _HANGUL[1]
    return first.isalnum() and is_spaced

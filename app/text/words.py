"""Which tokens go on with a word, and which begin one. Knows no tokenizer."""

import unicodedata
from collections.abc import Iterable

import numpy as np

_WITHOUT_SPACES = (
    ("\u0e00", "\u0eff"),  # Thai, Lao
    ("\u1000", "\u109f"),  # Myanmar
    ("\u1780", "\u17ff"),  # Khmer
    ("\u2e80", "\ua4cf"),  # Chinese, Japanese, Yi
    ("\uf900", "\ufaff"),  # more Chinese
    ("\U00020000", "\U0003ffff"),  # more Chinese
)
"""Scripts that do not separate words by spaces. There, each token counts as a word."""


def continuation_bits(pieces: Iterable[bytes]) -> bytes:
    """A bit for each token, lowest bit first: 1 if the token goes on with the word of the token before it.

    `pieces`: the bytes that each token adds in the middle of a text. A token goes on with a word if it begins
    with a letter, a mark of a letter, a digit or an apostrophe.
    """
    flags = [_continues(piece.decode(errors="replace")) for piece in pieces]
    return np.packbits(np.array(flags, np.bool_), bitorder="little").tobytes()


def _continues(text: str) -> bool:
    first = text[:1]
    if not first or any(start <= first <= end for start, end in _WITHOUT_SPACES):
        return False
    return first in "'’" or unicodedata.category(first)[0] in "LMN"

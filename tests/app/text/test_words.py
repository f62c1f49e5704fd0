"""Which tokens go on with a word."""

import numpy as np
import pytest

from app.text.words import continuation_bits


@pytest.mark.parametrize(
    ("piece", "continues"),
    [
        ("ing", True),
        ("ÉTÉ", True),
        ("слов", True),
        ("텍스트", True),
        ("ếng", True),
        ("სიტყვა", True),
        ("\u093f", True),
        ("\u0301", True),
        ("42", True),
        ("'s", True),
        ("’t", True),
        (" the", False),
        ("\nThe", False),
        (".", False),
        ("-known", False),
        ("東京", False),
        ("ไทย", False),
        ("ひらがな", False),
        ("𠀀", False),
        ("", False),
    ],
)
def test_a_letter_without_a_space_goes_on_with_a_word(piece: str, continues: bool) -> None:
    assert bits(piece.encode()) == [continues]


def test_a_part_of_a_character_begins_a_word() -> None:
    assert bits("é".encode()[:1], "é".encode()[1:]) == [False, False]


def test_tokens_have_their_bits_in_order() -> None:
    pieces = [b"a", b" a", b"b", b"c", b"!", b"d", b" ", b"e", b"f", b"?"]
    assert bits(*pieces) == [True, False, True, True, False, True, False, True, True, False]


def test_an_empty_vocabulary_has_no_bits() -> None:
    assert continuation_bits([]) == b""


def bits(*pieces: bytes) -> list[bool]:
    packed = np.frombuffer(continuation_bits(pieces), np.uint8)
    return list(np.unpackbits(packed, count=len(pieces), bitorder="little").astype(bool))

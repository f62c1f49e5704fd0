"""The detokenizer returns the whole text, each part once and as early as possible, but no stop sequence."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.detokenizer import Detokenizer


def run(pieces: list[bytes], stop: list[str], strips: bool = False) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(stop, strips)
    texts = []
    for piece in pieces:
        texts.append(detokenizer.push(piece))
        if detokenizer.stopped:
            return texts, detokenizer
    return [*texts, detokenizer.finish()], detokenizer


def expected(pieces: list[bytes], stop: list[str]) -> str:
    """The expected text, found by a search of the whole text after every token."""
    for count in range(1, len(pieces) + 1):
        text = b"".join(pieces[:count]).decode()
        cuts = [text.find(sequence) for sequence in stop if sequence in text]
        if cuts:
            return text[: min(cuts)]
    return b"".join(pieces).decode()


small_texts = st.text(alphabet="abc", min_size=1, max_size=4)


@given(st.lists(small_texts, max_size=12), st.lists(small_texts, max_size=4))
def test_the_text_ends_before_the_first_stop_sequence(pieces: list[str], stop: list[str]) -> None:
    encoded = [piece.encode() for piece in pieces]
    assert "".join(run(encoded, stop)[0]) == expected(encoded, stop)


@given(st.lists(small_texts, max_size=12), st.lists(small_texts, max_size=4))
def test_only_a_possible_beginning_of_a_stop_sequence_is_held_back(
    pieces: list[str], stop: list[str]
) -> None:
    detokenizer = Detokenizer(stop)
    text = ""
    for piece in pieces:
        detokenizer.push(piece.encode())
        if detokenizer.stopped:
            return
        text += piece
        beginnings = {sequence[:length] for sequence in stop for length in range(1, len(sequence))}
        held = max((len(start) for start in beginnings if text.endswith(start)), default=0)
        assert detokenizer.released == len(text) - held


@given(st.text(max_size=30), st.integers(1, 3))
def test_a_character_is_never_split(text: str, size: int) -> None:
    data = text.encode()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    texts, _ = run(pieces, [])
    assert "".join(texts) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in texts)


def split(data: bytes, sizes: list[int]) -> list[bytes]:
    """Splits the data into pieces of these sizes, which repeat."""
    cuts = [
        0,
        *itertools.takewhile(lambda end: end < len(data), itertools.accumulate(itertools.cycle(sizes))),
    ]
    return [data[start:end] for start, end in itertools.pairwise([*cuts, len(data)])]


mixed_texts = st.text(alphabet="ae\u0301é日🙂\u200d👩🇩\n\0", max_size=20)
sizes = st.lists(st.integers(1, 6), min_size=1, max_size=6)


@given(st.binary(max_size=24), sizes)
def test_bytes_in_any_pieces_are_decoded_like_the_whole(data: bytes, sizes: list[int]) -> None:
    texts, detokenizer = run(split(data, sizes), [])
    assert "".join(texts) == data.decode(errors="replace")
    assert detokenizer.decoded == detokenizer.released == len(data.decode(errors="replace"))


@given(mixed_texts, st.text(alphabet="ae\u0301日👩🇩\n\0", min_size=1, max_size=3), sizes)
def test_a_stop_sequence_is_found_however_it_is_split(text: str, stop: str, sizes: list[int]) -> None:
    texts, detokenizer = run(split(text.encode(), sizes), [stop])
    assert "".join(texts) == text.partition(stop)[0]
    assert detokenizer.stopped == (stop in text)


@given(mixed_texts, st.lists(mixed_texts.filter(bool), max_size=4), sizes)
def test_returned_text_is_final(text: str, stop: list[str], sizes: list[int]) -> None:
    """It contains no stop sequence, and no part of a character."""
    texts, _ = run(split(text.encode(), sizes), stop)
    returned = "".join(texts)
    assert text.startswith(returned)
    assert not any(sequence in returned for sequence in stop)


def test_an_incomplete_character_at_the_end_is_replaced() -> None:
    assert run(["€".encode()[:2]], [])[0] == ["", "\ufffd"]


def test_invalid_bytes_are_replaced_like_in_python() -> None:
    data = b"a\xffb\xe2\x82c\xf0\x9f"
    assert "".join(run([bytes([byte]) for byte in data], [])[0]) == data.decode(errors="replace")


def test_held_back_text_is_returned_at_the_end() -> None:
    assert run([b"some EN"], ["END"])[0] == ["some ", "EN"]


def test_a_failed_match_may_overlap_the_next_one() -> None:
    assert "".join(run([bytes([byte]) for byte in b"xaaabz"], ["aab"])[0]) == "xa"


def test_no_text_is_returned_after_a_stop_sequence() -> None:
    _, detokenizer = run([b"aXb"], ["X"])
    assert detokenizer.stopped
    assert detokenizer.finish() == ""


@pytest.mark.parametrize(
    ("pieces", "text"), [([b" a", b" b"], "a b"), ([b"", b" ", b" a"], " a"), ([b"a"], "a")]
)
def test_one_leading_space_is_stripped_if_the_tokenizer_strips_it(pieces: list[bytes], text: str) -> None:
    assert "".join(run(pieces, [], strips=True)[0]) == text


def test_time_is_linear_in_the_text() -> None:
    stop = ["a" * 255 + letter for letter in "bcdefghijklmnopq"]

    def seconds(count: int) -> float:
        start = time.perf_counter()
        run(list(itertools.repeat(b"aaaa", count)), stop)
        return time.perf_counter() - start

    assert seconds(4000) < 12 * min(seconds(1000) for _ in range(3))

"""The stop filter returns the whole text, each part once and as early as possible, but no stop sequence."""

import itertools
import time

from hypothesis import given
from hypothesis import strategies as st

from app.text.stop_filter import StopFilter


def run(pieces: list[str], stop: list[str]) -> tuple[list[str], StopFilter]:
    stop_filter = StopFilter(stop)
    texts = []
    for piece in pieces:
        texts.append(stop_filter.push(piece))
        if stop_filter.stopped:
            return texts, stop_filter
    return [*texts, stop_filter.finish()], stop_filter


def expected(pieces: list[str], stop: list[str]) -> str:
    """The expected text, found by a search of the whole text after every piece."""
    for count in range(1, len(pieces) + 1):
        text = "".join(pieces[:count])
        cuts = [text.find(sequence) for sequence in stop if sequence in text]
        if cuts:
            return text[: min(cuts)]
    return "".join(pieces)


small_texts = st.text(alphabet="abc", min_size=1, max_size=4)
texts_with_gaps = st.text(alphabet="abc", max_size=4)


@given(st.lists(texts_with_gaps, max_size=12), st.lists(small_texts, max_size=4))
def test_the_text_ends_before_the_first_stop_sequence(pieces: list[str], stop: list[str]) -> None:
    assert "".join(run(pieces, stop)[0]) == expected(pieces, stop)


@given(st.lists(texts_with_gaps, max_size=12), st.lists(small_texts, max_size=4))
def test_only_a_possible_beginning_of_a_stop_sequence_is_held_back(
    pieces: list[str], stop: list[str]
) -> None:
    stop_filter = StopFilter(stop)
    text = ""
    for piece in pieces:
        stop_filter.push(piece)
        if stop_filter.stopped:
            return
        text += piece
        beginnings = {sequence[:length] for sequence in stop for length in range(1, len(sequence))}
        held = max((len(start) for start in beginnings if text.endswith(start)), default=0)
        assert (stop_filter.length, stop_filter.released) == (len(text), len(text) - held)


def split(text: str, sizes: list[int]) -> list[str]:
    """Splits the text into pieces of these sizes, which repeat."""
    ends = itertools.accumulate(itertools.cycle(sizes))
    cuts = [0, *itertools.takewhile(lambda end: end < len(text), ends)]
    return [text[start:end] for start, end in itertools.pairwise([*cuts, len(text)])]


mixed_texts = st.text(alphabet="ae\u0301é日🙂\u200d👩🇩\n\0", max_size=20)
sizes = st.lists(st.integers(1, 6), min_size=1, max_size=6)


@given(mixed_texts, st.text(alphabet="ae\u0301日👩🇩\n\0", min_size=1, max_size=3), sizes)
def test_a_stop_sequence_is_found_however_it_is_split(text: str, stop: str, sizes: list[int]) -> None:
    texts, stop_filter = run(split(text, sizes), [stop])
    assert "".join(texts) == text.partition(stop)[0]
    assert stop_filter.stopped == (stop in text)


@given(mixed_texts, st.lists(mixed_texts.filter(bool), max_size=4), sizes)
def test_returned_text_is_final(text: str, stop: list[str], sizes: list[int]) -> None:
    """It contains no stop sequence."""
    texts, _ = run(split(text, sizes), stop)
    returned = "".join(texts)
    assert text.startswith(returned)
    assert not any(sequence in returned for sequence in stop)


def test_held_back_text_is_returned_at_the_end() -> None:
    assert run(["some EN"], ["END"])[0] == ["some ", "EN"]


def test_a_failed_match_may_overlap_the_next_one() -> None:
    assert "".join(run(list("xaaabz"), ["aab"])[0]) == "xa"


def test_no_text_is_returned_after_a_stop_sequence() -> None:
    _, stop_filter = run(["aXb"], ["X"])
    assert stop_filter.stopped
    assert stop_filter.push("c") == ""
    assert stop_filter.finish() == ""


def test_time_is_linear_in_the_text() -> None:
    stop = ["a" * 255 + letter for letter in "bcdefghijklmnopq"]

    def seconds(count: int) -> float:
        start = time.perf_counter()
        run(list(itertools.repeat("aaaa", count)), stop)
        return time.perf_counter() - start

    assert seconds(4000) < 12 * min(seconds(1000) for _ in range(3))

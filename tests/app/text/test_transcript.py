"""Token events give the same answer, streamed or whole."""

import math
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from app.schemas.completions import Delta, TokenLogprob
from app.text.tokenizer import Tokenizer
from app.text.transcript import Progress, Transcript
from inference.interface.requests import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)
from tests.app.fakes import END_OF_TURN
from tests.app.text.kinds import BYTE_TOKENS, KINDS, bert, gemma, llama_2, saved, t5, wav2vec2, words, xlm
from tests.app.text.transcripts import CONTROL, HEADING, TEXT, by_finish, by_stop, feed, in_steps


def transcript(
    tokenizer: Tokenizer, stop: tuple[str, ...] = (), n: int = 1, logprobs: bool = True
) -> Transcript:
    sampling = SamplingParams(top_logprobs=0 if logprobs else None)
    return Transcript(HEADING, tokenizer, GenerationRequest("r", [5, 6, 7], 100, n, sampling), stop)


def events_of(token_ids: list[int], finish: FinishReason, index: int = 0) -> list[TokenEvent]:
    ids = [*token_ids, END_OF_TURN] if finish is FinishReason.STOP else token_ids
    reasons = [None] * (len(ids) - 1) + [finish]
    measured = TokenLogprobs(-0.5, [])
    return [
        TokenEvent("r", index, token_id, reason, measured)
        for token_id, reason in zip(ids, reasons, strict=True)
    ]


def streamed(answer: Transcript, progress: list[Progress]) -> tuple[str, list[TokenLogprob]]:
    choices = [chunk.choices[0] for step in progress for chunk in answer.chunks(step)]
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    return "".join(choice.delta.content for choice in choices if choice.delta.content), entries


@by_finish
@by_stop
@pytest.mark.parametrize("per_step", [1, 3, 100])
def test_streamed_and_whole_answers_are_the_same(
    tokenizer: Tokenizer, finish: FinishReason, stop: tuple[str, ...], per_step: int
) -> None:
    events = events_of(tokenizer.encode(TEXT), finish)
    answer = transcript(tokenizer, stop)
    progress = feed(answer, in_steps(events, per_step))
    text, entries = streamed(answer, progress)
    (choice,) = answer.completion(progress).choices
    cuts = [TEXT.find(sequence) for sequence in stop if sequence in TEXT]
    assert choice.message.content == text == TEXT[: min(cuts, default=None)]
    assert choice.logprobs is not None
    assert choice.logprobs.content == entries
    assert choice.finish_reason == ("stop" if cuts or finish is FinishReason.STOP else "length")


@given(
    text=st.text(alphabet="ab€😀", max_size=12),
    stop=st.lists(st.text(alphabet="ab€", min_size=1, max_size=3)),
)
def test_log_probabilities_cover_the_text(tokenizer: Tokenizer, text: str, stop: list[str]) -> None:
    answer = transcript(tokenizer, tuple(stop))
    progress = feed_ids(answer, tokenizer.encode(text), FinishReason.STOP)
    content, entries = streamed(answer, progress)
    covered = b"".join(bytes(entry.bytes) for entry in entries)
    assert covered.startswith(content.encode())
    last = entries[-1].bytes if entries else []
    assert len(covered) - len(last) < len(content.encode()) or not entries


@given(
    generated=st.lists(
        st.tuples(st.lists(st.integers(3, 299), max_size=10), st.sampled_from(FinishReason)),
        min_size=1,
        max_size=4,
    ),
    stop=st.lists(st.text(alphabet="abehlo ,é", min_size=1, max_size=2), max_size=2),
    logprobs=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_interleaved_choices_are_the_same_as_separate_ones(
    tokenizer: Tokenizer,
    generated: list[tuple[list[int], FinishReason]],
    stop: list[str],
    logprobs: bool,
    order: random.Random,
) -> None:
    queues = [
        events_of(ids, finish if ids else FinishReason.STOP, index)
        for index, (ids, finish) in enumerate(generated)
    ]
    answer = transcript(tokenizer, tuple(stop), len(queues), logprobs)
    alone = [transcript(tokenizer, tuple(stop), len(queues), logprobs) for _ in queues]
    expected = [feed(one, in_steps(queue)) for one, queue in zip(alone, queues, strict=True)]
    progress = feed(answer, shuffled(queues, order))
    assert answer.ended
    assert answer.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    for choice in answer.completion(progress).choices:
        own = [step for step in progress if step.index == choice.index]
        text, entries = streamed(answer, own)
        assert choice.message.content == text == streamed(answer, expected[choice.index])[0]
        assert (choice.logprobs.content if choice.logprobs else []) == entries
        assert entries == streamed(answer, expected[choice.index])[1]
        assert choice.finish_reason == own[-1].finish_reason == expected[choice.index][-1].finish_reason
        assert [bool(step.text) for step in own[:-1]] == [True] * (len(own) - 1)


def shuffled(queues: list[list[TokenEvent]], order: random.Random) -> list[list[TokenEvent]]:
    """Engine steps. Each has one event of some of the choices."""
    remaining, steps = [list(queue) for queue in queues], []
    while any(remaining):
        drawn = [queue for queue in remaining if queue and order.random() < 0.6]
        steps.append([queue.pop(0) for queue in drawn])
    return steps


def test_tokens_of_one_character_are_in_the_same_step(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀")
    assert len(ids) == 4
    answer = transcript(tokenizer)
    (step, last) = feed_ids(answer, ids, FinishReason.STOP)
    assert step.text == "😀"
    assert [entry.bytes for entry in step.logprobs] == [[0xF0], [0x9F], [0x98], [0x80]]
    assert (last.text, last.logprobs, last.finish_reason) == ("", [], "stop")


def test_a_control_token_has_no_text(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("a"), tokenizer.control_tokens["<|endoftext|>"], *tokenizer.encode("b")]
    answer = transcript(tokenizer)
    text, entries = streamed(answer, feed_ids(answer, ids, FinishReason.STOP))
    assert text == "ab"
    assert [entry.token for entry in entries] == ["a", "<|endoftext|>", "b"]


def test_usage_counts_up_to_the_token_that_completed_the_stop_sequence(tokenizer: Tokenizer) -> None:
    answer = transcript(tokenizer, ("c",))
    (step,) = answer.feed(events_of(tokenizer.encode("abcdef"), FinishReason.STOP))
    assert (step.text, step.finish_reason) == ("ab", "stop")
    assert answer.usage.completion_tokens == 3
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 6)


def test_a_choice_at_a_stop_sequence_is_running_only_if_the_engine_goes_on(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab")
    going_on = transcript(tokenizer, ("b",)).feed([TokenEvent("r", 0, ids[-1])])
    assert [step.running for step in going_on] == [True]
    ended = transcript(tokenizer, ("b",)).feed([TokenEvent("r", 0, ids[-1], FinishReason.LENGTH)])
    assert [step.running for step in ended] == [False]
    assert ended[0].finish_reason == "stop"


def test_events_after_the_end_are_ignored(tokenizer: Tokenizer) -> None:
    answer = transcript(tokenizer, ("b",))
    feed(answer, [[TokenEvent("r", 0, token_id)] for token_id in tokenizer.encode("ab")])
    assert answer.ended
    assert answer.feed([TokenEvent("r", 0, 40)]) == []
    assert answer.usage.completion_tokens == 2


def test_choices_end_separately_and_usage_is_their_sum(tokenizer: Tokenizer) -> None:
    answer = transcript(tokenizer, n=2)
    answer.feed(events_of(tokenizer.encode("ab"), FinishReason.STOP, index=1))
    assert not answer.ended
    answer.feed(events_of(tokenizer.encode("xyz"), FinishReason.LENGTH, index=0))
    assert answer.ended
    assert answer.usage.completion_tokens == 5


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
def test_a_log_probability_that_is_not_finite_is_minus_9999(tokenizer: Tokenizer, value: float) -> None:
    answer = transcript(tokenizer)
    (step,) = answer.feed([TokenEvent("r", 0, 40, None, TokenLogprobs(value, [(41, value)]))])
    assert (step.logprobs[0].logprob, step.logprobs[0].top_logprobs[0].logprob) == (-9999.0, -9999.0)


def test_log_probabilities_are_left_out_unless_requested(tokenizer: Tokenizer) -> None:
    answer = transcript(tokenizer, logprobs=False)
    progress = answer.feed([TokenEvent("r", 0, 40), TokenEvent("r", 0, 41, FinishReason.LENGTH)])
    assert answer.completion(progress).choices[0].logprobs is None
    assert [chunk.choices[0].logprobs for chunk in answer.chunks(progress[0])] == [None, None]


def test_the_opening_has_the_role_of_every_choice(tokenizer: Tokenizer) -> None:
    opening = transcript(tokenizer, n=3).opening()
    assert [chunk.choices[0].index for chunk in opening] == [0, 1, 2]
    assert all((c.choices[0].delta.role, c.choices[0].delta.content) == ("assistant", "") for c in opening)


def feed_ids(answer: Transcript, ids: list[int], finish: FinishReason, per_step: int = 1) -> list[Progress]:
    return feed(answer, in_steps(events_of(ids, finish), per_step))


@pytest.mark.parametrize("per_step", [1, 2, 100])
@by_finish
@pytest.mark.parametrize(
    "names",
    [["C"], ["C", "C"], ["a", "C"], ["C", "a"], ["a", "C", "C"], ["C", "a", "C", "b", "C"]],
    ids="".join,
)
def test_every_generated_control_token_has_an_entry(
    tokenizer: Tokenizer, names: list[str], finish: FinishReason, per_step: int
) -> None:
    ids = [CONTROL if name == "C" else tokenizer.encode(name)[0] for name in names]
    answer = transcript(tokenizer)
    progress = feed_ids(answer, ids, finish, per_step)
    text, entries = streamed(answer, progress)
    (choice,) = answer.completion(progress).choices
    assert choice.logprobs is not None
    assert choice.message.content == text == "".join(names).replace("C", "")
    assert choice.logprobs.content == entries
    assert [entry.token for entry in entries] == [name.replace("C", "<|endoftext|>") for name in names]
    assert all(entry.bytes == list(entry.token.encode()) for entry in entries)
    *contents, last = [chunk.choices[0] for step in progress for chunk in answer.chunks(step)]
    assert all(choice.delta.content for choice in contents)
    assert last.delta == Delta()


def test_only_entries_without_a_content_chunk_are_in_the_last_chunk(tokenizer: Tokenizer) -> None:
    (a,) = tokenizer.encode("a")
    answer = transcript(tokenizer)
    chunks = [
        chunk for step in feed_ids(answer, [a, CONTROL], FinishReason.LENGTH) for chunk in answer.chunks(step)
    ]
    tokens = [[entry.token for entry in chunk.choices[0].logprobs.content] for chunk in chunks]
    assert tokens == [["a"], ["<|endoftext|>"]]
    together = feed_ids(transcript(tokenizer), [a, CONTROL], FinishReason.LENGTH, 2)
    content, last = [chunk.choices[0].logprobs for step in together for chunk in answer.chunks(step)]
    assert [entry.token for entry in content.content] == ["a", "<|endoftext|>"]
    assert last is None


@pytest.mark.parametrize("per_step", [1, 2, 100])
@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["a", "C", "b"], ["a", "C"]),
        (["C", "b"], ["C"]),
        (["a", "b", "C", "c"], ["a"]),
        (["a", "b", "C"], ["a"]),
    ],
    ids=str,
)
def test_a_control_token_in_or_after_a_removed_stop_sequence_has_no_entry(
    tokenizer: Tokenizer, names: list[str], shown: list[str], per_step: int
) -> None:
    ids = [CONTROL if name == "C" else tokenizer.encode(name)[0] for name in names]
    answer = transcript(tokenizer, stop=("bc",) if "c" in names else ("b",))
    _, entries = streamed(answer, feed_ids(answer, ids, FinishReason.LENGTH, per_step))
    assert [entry.token for entry in entries] == [name.replace("C", "<|endoftext|>") for name in shown]


def ids_of(original: tokenizers.Tokenizer, *tokens: str) -> list[int]:
    return [original.token_to_id(token) for token in tokens]


def test_an_indentation_token_is_shown_and_stopped_at_as_spaces(tmp_path: Path) -> None:
    original = gemma()
    tokenizer = saved(original, tmp_path)
    ids = ids_of(original, "a", "▁▁▁▁", "▁▁▁▁")
    answer = transcript(tokenizer)
    text, entries = streamed(answer, feed_ids(answer, ids, FinishReason.LENGTH))
    assert text == "a        "
    assert [(entry.token, entry.bytes) for entry in entries] == [("a", [97]), *[("    ", [32] * 4)] * 2]
    stopping = transcript(tokenizer, stop=("    ",))
    (a, last) = feed_ids(stopping, ids, FinishReason.LENGTH)
    assert (a.text, last.text, last.finish_reason) == ("a", "", "stop")
    assert stopping.usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("kind", "tokens", "text"),
    [
        (bert, ["hello"] * 3, "hello hello hello"),
        (bert, ["##able"] * 2, "##ableable"),
        (t5, ["▁a", "▁▁▁▁", "▁a"], "a     a"),
        (words, ["a", "new"], "a new"),
        (xlm, ["a</w>", "ab</w>"], "a ab"),
        (wav2vec2, ["h", "h", "<pad>", "h", "|"], "hh "),
        (llama_2, ["▁a", "<0xE2>", "<0x82>"], "a\ufffd\ufffd"),
    ],
)
def test_forced_tokens_give_the_text_of_the_tokenizers_decoder(
    kind: Callable[[], tokenizers.Tokenizer], tokens: list[str], text: str, tmp_path: Path
) -> None:
    original = kind()
    ids = ids_of(original, *tokens)
    answer = transcript(saved(original, tmp_path))
    assert streamed(answer, feed_ids(answer, ids, FinishReason.LENGTH))[0] == text == original.decode(ids)


@pytest.mark.parametrize(
    ("stop", "text", "shown"),
    [("🙂", "é", 2), ("é", "", 0), ("b", "é🙂", 6), ("x", "é🙂b", 7), ("\n", "é🙂b", 7)],
)
def test_only_byte_tokens_of_the_returned_text_have_entries(
    stop: str, text: str, shown: int, tmp_path: Path
) -> None:
    original = llama_2()
    ids = ids_of(original, *(BYTE_TOKENS[byte] for byte in "é🙂".encode()), "b", "\n", "<0x0A>")
    ids = [token_id for token_id in ids if token_id is not None]
    answer = transcript(saved(original, tmp_path), stop=(stop,))
    content, entries = streamed(answer, feed_ids(answer, ids, FinishReason.LENGTH))
    assert content == text + ("\n" if stop == "x" else "")
    assert [entry.bytes for entry in entries] == [[byte] for byte in content.encode()]
    assert len(entries) == shown + (stop == "x")


def test_control_tokens_keep_their_place_among_tokens_that_are_held_back(tmp_path: Path) -> None:
    original = llama_2()
    ids = ids_of(original, "a", "</s>", "<0xC3>", "</s>", "<0xA9>", "</s>", "b", "</s>")
    answer = transcript(saved(original, tmp_path), stop=("b",))
    text, entries = streamed(answer, feed_ids(answer, ids, FinishReason.LENGTH))
    assert text == "aé"
    assert [bytes(entry.bytes) for entry in entries] == [b"a", b"</s>", b"\xc3", b"</s>", b"\xa9", b"</s>"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_tokenizer_gives_the_same_streamed_and_whole(
    kind: Callable[[], tokenizers.Tokenizer], data: st.DataObject
) -> None:
    original, tokenizer = loaded(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.size), min_size=1, max_size=12))
    stop = data.draw(st.lists(st.text(alphabet="ab ▁.é", min_size=1, max_size=2), max_size=2))
    finish = data.draw(st.sampled_from(FinishReason))
    answer = transcript(tokenizer, tuple(stop))
    progress = feed_ids(answer, ids, finish, data.draw(st.integers(1, 4)))
    text, entries = streamed(answer, progress)
    (choice,) = answer.completion(progress).choices
    assert choice.logprobs is not None
    assert (choice.message.content, choice.logprobs.content) == (text, entries)
    whole = original.decode(ids)
    if any(sequence in whole for sequence in stop):
        assert whole.startswith(text)
        assert choice.finish_reason == "stop"
    else:
        assert text == whole
        assert [entry.token for entry in entries] == [tokenizer.text_of(token_id).name for token_id in ids]


@cache
def loaded(kind: Callable[[], tokenizers.Tokenizer]) -> tuple[tokenizers.Tokenizer, Tokenizer]:
    original = kind()
    with tempfile.TemporaryDirectory() as directory:
        return original, saved(original, Path(directory))

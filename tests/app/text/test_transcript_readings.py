"""An answer's readings, and the strengths that the engine reduced."""

import math
from typing import Any

import msgspec
import pytest

from app.schemas.completions import TokenReadings
from app.text.tokenizer import Tokenizer
from app.text.transcript import ConceptDigests, Progress, Transcript
from inference.interface.requests import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)
from tests.app.fakes import END_OF_TURN
from tests.app.text.transcripts import CONTROL, HEADING, TEXT, by_finish, by_stop, feed, in_steps

DIGESTS = ConceptDigests(readings={"_worker/b": "b2", "_worker/a": "a1", "_worker/also-b": "b2"})


def transcript(
    tokenizer: Tokenizer, stop: tuple[str, ...] = (), n: int = 1, logprobs: bool = False
) -> Transcript:
    sampling = SamplingParams(top_logprobs=0 if logprobs else None)
    request = GenerationRequest("r", [5], 100, n, sampling, readings=("b2", "a1"))
    return Transcript(HEADING, tokenizer, request, stop, DIGESTS)


def events_of(
    ids: list[int], finish: FinishReason, index: int = 0, logprobs: bool = False
) -> list[TokenEvent]:
    measured = TokenLogprobs(-0.5, []) if logprobs else None
    events = [
        TokenEvent("r", index, token_id, None, measured, [position / 8, -position])
        for position, token_id in enumerate(ids)
    ]
    if finish is FinishReason.STOP:
        return [*events, TokenEvent("r", index, END_OF_TURN, finish)]
    return [*events[:-1], msgspec.structs.replace(events[-1], finish_reason=finish)]


def in_chunks(answer: Transcript, progress: list[Progress]) -> list[list[TokenReadings]]:
    choices = [chunk.choices[0] for step in progress for chunk in answer.chunks(step)]
    return [choice.steering_readings.content for choice in choices if choice.steering_readings]


@by_finish
@by_stop
@pytest.mark.parametrize("per_step", [1, 3, 100])
def test_streamed_and_whole_answers_have_the_entries_of_logprobs(
    tokenizer: Tokenizer, finish: FinishReason, stop: tuple[str, ...], per_step: int
) -> None:
    ids = [*tokenizer.encode(TEXT), CONTROL]
    answer, both = transcript(tokenizer, stop), transcript(tokenizer, stop, logprobs=True)
    progress = feed(answer, in_steps(events_of(ids, finish), per_step))
    (choice,) = answer.completion(progress).choices
    entries = choice.steering_readings.content
    assert entries == [entry for part in in_chunks(answer, progress) for entry in part]
    assert [entry.readings["_worker/b"] for entry in entries] == [rank / 8 for rank in range(len(entries))]
    repeated = feed(both, in_steps(events_of(ids, finish, logprobs=True), per_step))
    (other,) = both.completion(repeated).choices
    assert other.steering_readings == choice.steering_readings
    tokens = [(entry.token, entry.bytes) for entry in other.logprobs.content]
    assert [(entry.token, entry.bytes) for entry in entries] == tokens


def test_each_id_of_the_request_has_its_reading_in_order(tokenizer: Tokenizer) -> None:
    answer = transcript(tokenizer)
    (step,) = answer.feed([TokenEvent("r", 0, 40, None, None, [0.25, -1.5])])
    (entry,) = step.readings
    assert list(entry.readings.items()) == [
        ("_worker/b", 0.25),
        ("_worker/a", -1.5),
        ("_worker/also-b", 0.25),
    ]


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
def test_a_reading_that_is_not_finite_is_null(tokenizer: Tokenizer, value: float) -> None:
    (step,) = transcript(tokenizer).feed([TokenEvent("r", 0, 40, None, None, [1.0, value])])
    assert step.readings[0].readings["_worker/a"] is None


def test_choices_do_not_mix(tokenizer: Tokenizer) -> None:
    answer = transcript(tokenizer, n=2)
    queues = [
        events_of(tokenizer.encode(text), FinishReason.LENGTH, index)
        for index, text in enumerate(("ab", "xyz"))
    ]
    steps = [*zip(*queues, strict=False), queues[1][2:]]
    progress = [part for step in steps for part in answer.feed(list(step))]
    for choice, text in zip(answer.completion(progress).choices, ("ab", "xyz"), strict=True):
        assert [entry.token for entry in choice.steering_readings.content] == list(text)


def as_json(answer: Transcript, progress: list[Progress]) -> tuple[Any, list[Any]]:
    chunks = [chunk for step in progress for chunk in answer.chunks(step)]
    completion = msgspec.json.decode(msgspec.json.encode(answer.completion(progress)))
    return completion, msgspec.json.decode(msgspec.json.encode([*answer.opening(), *chunks]))


def test_only_what_the_request_asks_for_is_sent(tokenizer: Tokenizer) -> None:
    answer = Transcript(HEADING, tokenizer, GenerationRequest("r", [5], 100))
    whole, chunks = as_json(answer, answer.feed(events_of([40, 41], FinishReason.LENGTH)))
    for part in (whole, *chunks):
        assert "steering" not in part
        assert "steering_readings" not in part["choices"][0]


def test_each_last_chunk_reports_the_strengths_that_were_reduced(tokenizer: Tokenizer) -> None:
    steering = {"_worker/a": "a1", "_worker/b": "b2", "_worker/also-a": "a1"}
    request = GenerationRequest("r", [5], 100, n=2)
    answer = Transcript(HEADING, tokenizer, request, digests=ConceptDigests(steering))
    answer.report_clipped({"a1": 1.25})
    events = [event for index in (0, 1) for event in events_of([40], FinishReason.LENGTH, index)]
    whole, chunks = as_json(answer, answer.feed(events))
    expected = {"applied": {"_worker/a": 1.25, "_worker/also-a": 1.25}}
    assert whole["steering"] == expected
    assert [chunk.get("steering") for chunk in chunks] == [None, None, None, expected, None, expected]


def test_nothing_is_reported_if_no_strength_was_reduced(tokenizer: Tokenizer) -> None:
    answer = Transcript(
        HEADING, tokenizer, GenerationRequest("r", [5], 100), digests=ConceptDigests({"_worker/a": "a1"})
    )
    answer.report_clipped({})
    whole, chunks = as_json(answer, answer.feed(events_of([40], FinishReason.LENGTH)))
    assert [part for part in (whole, *chunks) if "steering" in part] == []

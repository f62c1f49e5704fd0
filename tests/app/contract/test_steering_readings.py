"""What an answer reports about steering: `choices[].steering_readings`, and `steering` with the strengths."""

import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from app.concepts.concept import digest_of
from inference.interface.requests import FinishReason, GenerationRequest, TokenEvent
from tests.app.contract.support import (
    CONCEPTS,
    assert_error,
    chat,
    choice_chunks,
    completion,
    entries_of,
    readings_in,
    sent,
    steps,
    stream,
)
from tests.app.fakes import END_OF_TURN, FakeEngine, reply

Spell = Callable[[str | bytes], list[int]]

ENDOFTEXT = 0
SLOW = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def digest(name: str) -> str:
    return digest_of(CONCEPTS[name])


async def entries(client: httpx.AsyncClient, streamed: bool, **fields: Any) -> list[dict[str, Any]]:
    if streamed:
        return readings_in(await stream(client, **fields))
    return (await completion(client, **fields))["choices"][0]["steering_readings"]["content"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["a"], "a"),
        (["_worker/b", "a"], "ba"),
        (["b", "a", "_worker/b", "a"], "ba"),
        ([], ""),
    ],
    ids=str,
)
async def test_the_engine_reads_each_concept_once(
    client: httpx.AsyncClient, engine: FakeEngine, wanted: list[str], expected: str
) -> None:
    request = await sent(client, engine, steering_readings=wanted)
    assert (request.readings, request.steering) == (tuple(map(digest, expected)), None)


async def test_a_concept_can_steer_and_be_read(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    fields = {"steering_concepts": ["a", "b"], "steering_readings": ["c", "a"]}
    request = await sent(client, engine, **fields, steering_strength={"a": 0})
    assert request.steering is not None
    assert (list(request.steering.strengths), request.readings) == ([digest("b")], (digest("c"), digest("a")))


@pytest.mark.parametrize("streamed", [True, False])
async def test_each_token_has_a_reading_of_each_concept(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, streamed: bool
) -> None:
    engine.script = steps(spell("x"), spell("y"))
    found = await entries(client, streamed, steering_readings=["b", "_worker/a"])
    assert found == [
        {"token": letter, "bytes": [ord(letter)], "readings": {"_worker/b": first, "_worker/a": first + 1}}
        for letter, first in (("x", spell("x")[0] / 64), ("y", spell("y")[0] / 64))
    ]
    assert [list(entry["readings"]) for entry in found] == [["_worker/b", "_worker/a"]] * 2


@pytest.mark.parametrize("streamed", [True, False])
async def test_two_names_of_the_same_examples_have_the_same_reading(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, streamed: bool
) -> None:
    engine.script = steps(spell("x"))
    (entry,) = await entries(client, streamed, steering_readings=["same-as-a", "b", "a"])
    assert engine.requests[0].readings == (digest("a"), digest("b"))
    first = spell("x")[0] / 64
    assert list(entry["readings"].items()) == [
        ("_worker/same-as-a", first),
        ("_worker/b", first + 1),
        ("_worker/a", first),
    ]


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
async def test_a_reading_that_is_not_finite_is_null(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, value: float, streamed: bool
) -> None:
    def play(request: GenerationRequest) -> list[list[TokenEvent]]:
        (token_id,) = spell("x")
        return [[TokenEvent("r", 0, token_id, FinishReason.LENGTH, readings=[value, 0.5])]]

    engine.script = play
    (entry,) = await entries(client, streamed, steering_readings=["a", "b"])
    assert entry["readings"] == {"_worker/a": None, "_worker/b": 0.5}


@pytest.mark.parametrize("fields", [{}, {"steering_readings": []}, {"steering_readings": None}])
async def test_without_the_field_there_are_no_readings(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, fields: dict[str, Any]
) -> None:
    engine.script = steps(spell("x"))
    fields = {**fields, "steering_concepts": ["a"], "logprobs": True}
    answer = await completion(client, **fields)
    assert answer["choices"][0].keys() == {"index", "message", "logprobs", "finish_reason"}
    assert "steering" not in answer
    for chunk in await stream(client, **fields):
        assert "steering" not in chunk
        assert chunk["choices"][0].keys() == {"index", "delta", "logprobs", "finish_reason"}


async def test_an_answer_without_tokens_has_no_entries(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = steps()
    assert await entries(client, False, steering_readings=["a"]) == []
    assert await entries(client, True, steering_readings=["a"]) == []


def shown(entries: list[dict[str, Any]]) -> list[tuple[str, list[int]]]:
    return [(entry["token"], entry["bytes"]) for entry in entries]


@SLOW
@given(
    ids=st.lists(st.sampled_from([token for token in range(300) if token != END_OF_TURN]), max_size=12),
    stops=st.lists(st.text("ab é日", min_size=1, max_size=3), max_size=3),
    per_step=st.integers(1, 4),
    finish=st.sampled_from(FinishReason),
)
async def test_streamed_or_not_the_entries_are_those_of_logprobs(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    ids: list[int],
    stops: list[str],
    per_step: int,
    finish: FinishReason,
) -> None:
    groups = [ids[start : start + per_step] for start in range(0, len(ids), per_step)]
    engine.script = steps(*groups, finish=finish if ids else FinishReason.STOP)
    fields = {"stop": stops, "steering_readings": ["a", "b"]}
    (alone,) = (await completion(client, **fields))["choices"]
    (both,) = (await completion(client, **fields, logprobs=True))["choices"]
    chunks = await stream(client, **fields)
    with_logprobs = await stream(client, **fields, logprobs=True)
    whole = alone["steering_readings"]["content"]
    assert whole == both["steering_readings"]["content"] == readings_in(chunks) == readings_in(with_logprobs)
    assert shown(whole) == shown(both["logprobs"]["content"]) == shown(entries_of(with_logprobs))
    assert (alone["logprobs"], entries_of(chunks)) == (None, [])
    for part in choice_chunks(with_logprobs):
        content = (part["logprobs"] or {"content": []})["content"]
        assert shown(part.get("steering_readings", {"content": []})["content"]) == shown(content)
        assert ("steering_readings" in part) == (part["logprobs"] is not None)


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_token_without_text_at_the_end_has_its_entry(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, streamed: bool
) -> None:
    engine.script = steps(spell("x"), [ENDOFTEXT])
    found = await entries(client, streamed, steering_readings=["a"])
    assert [entry["token"] for entry in found] == ["x", "<|endoftext|>"]


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_removed_stop_sequence_has_no_entries(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, streamed: bool
) -> None:
    engine.script = steps(*([token] for token in spell("abcd")))
    found = await entries(client, streamed, steering_readings=["a"], stop="bc")
    assert [entry["token"] for entry in found] == ["a"]


async def test_each_choice_has_its_own_readings(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = reply(spell("xyz"))
    answer = await completion(client, n=3, steering_readings=["a"])
    chunks = await stream(client, n=3, steering_readings=["a"])
    for choice in answer["choices"]:
        found = choice["steering_readings"]["content"]
        assert [entry["token"] for entry in found] == ["x", "y", "z"]
        assert readings_in(chunks, choice["index"]) == found


@pytest.mark.parametrize(
    "wanted", ["a", 1, True, {}, {"a": 1}, [1], [None], [["a"]], ["a b"], ["a\n"], ["a/b"]], ids=json.dumps
)
async def test_malformed_readings_are_refused(
    client: httpx.AsyncClient, engine: FakeEngine, wanted: Any
) -> None:
    response = await chat(client, steering_readings=wanted)
    error = assert_error(response, 400, "INVALID_REQUEST", "steering_readings")
    assert error["param"] in ("steering_readings", "steering_readings[0]")
    assert engine.requests == []


async def test_at_most_16_distinct_concepts_are_read(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    names = [f"c{number}" for number in range(17)]
    response = await chat(client, steering_readings=names)
    assert_error(response, 400, "INVALID_REQUEST", "at most 16 concepts", param="steering_readings")
    response = await chat(client, steering_readings=[*names[:16], *names[:16]])
    assert_error(response, 404, "UNKNOWN_STEERING_CONCEPT", param="steering_readings")
    assert (await sent(client, engine, steering_readings=["a", "_worker/a"] * 500)).readings == (digest("a"),)


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_unknown_concept_cannot_be_read(
    client: httpx.AsyncClient, engine: FakeEngine, streamed: bool
) -> None:
    response = await chat(client, steering_readings=["a", "nobody"], stream=streamed)
    assert_error(response, 404, "UNKNOWN_STEERING_CONCEPT", "_worker/nobody", param="steering_readings")
    assert engine.requests == []


@pytest.mark.parametrize("n", [1, 2])
async def test_the_answer_says_which_strengths_were_reduced(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, n: int
) -> None:
    engine.script = reply(spell("xy"))
    engine.clipped = {digest("a"): 1.25, digest("b"): 0.5}
    fields = {"steering_concepts": ["c", "same-as-a", "b", "a"], "steering_strength": 2, "n": n}
    expected = {"applied": {"_worker/same-as-a": 1.25, "_worker/b": 0.5, "_worker/a": 1.25}}
    answer = await completion(client, **fields)
    assert json.dumps(answer["steering"]) == json.dumps(expected)
    chunks = await stream(client, **fields, stream_options={"include_usage": True})
    last = [chunk for chunk in chunks if any(choice["finish_reason"] for choice in chunk["choices"])]
    assert len(last) == n
    assert [chunk.get("steering") for chunk in last] == [expected] * n
    assert all("steering" not in chunk for chunk in chunks if chunk not in last)


async def test_openais_client_reads_answers_with_readings_and_reduced_strengths(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(spell("x"), spell("y"), [ENDOFTEXT])
    engine.clipped = {digest("a"): 1.25}
    fields = {"steering_concepts": ["a"], "steering_readings": ["a"], "logprobs": True}
    answer = ChatCompletion.model_validate(await completion(client, **fields))
    state = ChatCompletionStreamState()
    for chunk in await stream(client, **fields):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    streamed = state.get_final_completion()
    assert answer.choices[0].message.content == streamed.choices[0].message.content == "xy"
    tokens = [entry.token for entry in streamed.choices[0].logprobs.content]
    assert tokens == ["x", "y", "<|endoftext|>"]

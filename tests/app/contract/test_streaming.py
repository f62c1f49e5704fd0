"""The streamed answer: its bytes, and the exact sequence of its chunks."""

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import pytest

from inference.interface.requests import FinishReason, GenerationRequest
from tests.app.contract.support import (
    chat,
    choice_chunks,
    completion,
    content_of,
    entries_of,
    event_payloads,
    events,
    finish_of,
    steps,
    stream,
)
from tests.app.fakes import END_OF_TURN, FakeEngine, Step, reply

Spell = Callable[[str | bytes], list[int]]
CHUNK = {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
USAGE = {"include_usage": True}


@pytest.fixture
def abc(engine: FakeEngine, spell: Spell) -> FakeEngine:
    engine.script = steps(*([token_id] for token_id in spell("abc")))
    return engine


async def test_the_bytes_are_data_lines_and_empty_lines_and_end_with_done(
    client: httpx.AsyncClient, abc: FakeEngine
) -> None:
    response = await chat(client, stream=True, stream_options=USAGE, logprobs=True)
    assert response.status_code == 200
    assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
    assert response.content.endswith(b"data: [DONE]\n\n")
    payloads = event_payloads(response.content)
    assert payloads.index("[DONE]") == len(payloads) - 1
    assert all(isinstance(json.loads(payload), dict) for payload in payloads[:-1])


async def test_the_headers_tell_caches_and_proxies_not_to_buffer(
    client: httpx.AsyncClient, abc: FakeEngine
) -> None:
    headers = (await chat(client, stream=True)).headers
    every = {"x-request-id", "content-security-policy", "x-content-type-options", "x-frame-options"}
    every |= {"referrer-policy"}
    assert {name: value for name, value in headers.items() if name not in every} == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-store",
        "x-accel-buffering": "no",
    }


async def test_every_chunk_has_the_same_fields_and_identity(
    client: httpx.AsyncClient, abc: FakeEngine
) -> None:
    before = int(time.time())
    chunks = await stream(client, stream_options=USAGE)
    for chunk in chunks:
        assert chunk.keys() == CHUNK
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["model"] == "tiny"
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert chunks[0]["id"].startswith("chatcmpl-")
    assert before <= chunks[0]["created"] <= time.time() + 1


async def test_a_choice_is_a_role_chunk_content_chunks_and_a_finish_chunk(
    client: httpx.AsyncClient, abc: FakeEngine
) -> None:
    chunks = await stream(client)
    role, *contents, finish = [choice for chunk in chunks for choice in chunk["choices"]]
    assert role == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    assert all(choice["delta"].keys() == {"content"} and choice["delta"]["content"] for choice in contents)
    assert "".join(choice["delta"]["content"] for choice in contents) == "abc"
    assert all(choice["finish_reason"] is None for choice in contents)
    assert all(choice["logprobs"] is None for choice in contents)
    assert finish == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}


async def test_an_empty_answer_is_a_role_chunk_and_a_finish_chunk(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = reply([])
    deltas = [choice["delta"] for choice in choice_chunks(await stream(client))]
    assert deltas == [{"role": "assistant", "content": ""}, {}]


@pytest.mark.parametrize("finish", FinishReason)
async def test_the_finish_reason_has_its_own_chunk(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, finish: FinishReason
) -> None:
    engine.script = steps(spell("ab"), spell("c"), finish=finish)
    chunks = await stream(client)
    assert [choice["finish_reason"] for choice in choice_chunks(chunks)][-1] == finish.value
    assert choice_chunks(chunks)[-1]["delta"] == {}
    assert content_of(chunks) == "abc"


async def test_the_finish_chunk_carries_no_logprobs(client: httpx.AsyncClient, abc: FakeEngine) -> None:
    assert choice_chunks(await stream(client, logprobs=True))[-1]["logprobs"] is None


async def test_each_content_chunk_carries_its_tokens_logprobs(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(spell("a"), spell("bc"), *([token_id] for token_id in spell("日")))
    role, *contents, _ = choice_chunks(await stream(client, logprobs=True))
    assert not role["logprobs"]
    carried = [b"".join(bytes(e["bytes"]) for e in choice["logprobs"]["content"]) for choice in contents]
    assert carried == [choice["delta"]["content"].encode() for choice in contents]


async def test_the_fingerprint_is_null_before_the_finish_chunk(
    client: httpx.AsyncClient, abc: FakeEngine
) -> None:
    expected = (await completion(client))["system_fingerprint"]
    *before, finish = await stream(client)
    assert [chunk["system_fingerprint"] for chunk in before] == [None] * len(before)
    assert finish["system_fingerprint"] == expected
    assert expected is not None


async def test_without_include_usage_there_is_no_usage(client: httpx.AsyncClient, abc: FakeEngine) -> None:
    for options in (None, {"include_usage": False}):
        chunks = await stream(client, stream_options=options)
        assert all(chunk.get("usage") is None for chunk in chunks)
        assert all(len(chunk["choices"]) == 1 for chunk in chunks)


async def test_with_include_usage_an_extra_chunk_has_the_usage(
    client: httpx.AsyncClient, abc: FakeEngine
) -> None:
    *chunks, last = await stream(client, stream_options=USAGE)
    prompt = len(abc.requests[0].prompt_token_ids)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": prompt, "completion_tokens": 3, "total_tokens": prompt + 3}
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def duet(spell: Spell) -> Callable[[GenerationRequest], Iterable[Step]]:
    """A script with two choices whose tokens interleave. The second choice ends first."""

    def play(request: GenerationRequest) -> Iterable[Step]:
        yield events(request, spell("a"), 0) + events(request, spell("x"), 1)
        yield events(request, spell("y"), 1, FinishReason.LENGTH)
        yield events(request, spell("b"), 0) + events(request, [END_OF_TURN], 0, FinishReason.STOP)

    return play


async def test_every_choice_has_its_own_sequence(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = duet(spell)
    chunks = await stream(client, n=2)
    for index, (text, reason) in enumerate([("ab", "stop"), ("xy", "length")]):
        role, *contents, finish = [choice["delta"] for choice in choice_chunks(chunks, index)]
        assert (role, finish) == ({"role": "assistant", "content": ""}, {})
        assert "".join(delta["content"] for delta in contents) == text
        assert all(delta.keys() == {"content"} and delta["content"] for delta in contents)
        assert finish_of(chunks, index) == reason


async def test_only_each_choices_last_chunk_has_the_fingerprint(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = duet(spell)
    for chunk in await stream(client, n=2):
        finishes = chunk["choices"][0]["finish_reason"] is not None
        assert (chunk["system_fingerprint"] is not None) == finishes


async def test_usage_sums_the_choices(client: httpx.AsyncClient, engine: FakeEngine, spell: Spell) -> None:
    engine.script = duet(spell)
    usage = (await stream(client, n=2, stream_options=USAGE))[-1]["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4


@pytest.mark.parametrize("text", ["é", "日本語", "a🙂b🙃", "\u2028\x85\r\n", "\\n\"'<>&"])
async def test_a_character_is_never_split(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, text: str
) -> None:
    engine.script = steps(*([token_id] for token_id in spell(text)))
    chunks = await stream(client)
    contents = [choice["delta"]["content"] for choice in choice_chunks(chunks)[1:-1]]
    assert "".join(contents) == text
    assert all(content and "\ufffd" not in content for content in contents)


async def test_text_that_may_become_a_stop_sequence_is_held_back(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(*([token_id] for token_id in spell("aENaEND")))
    chunks = await stream(client, stop="END", logprobs=True)
    assert content_of(chunks) == "aENa"
    assert "".join(entry["token"] for entry in entries_of(chunks)) == "aENa"
    contents = [choice["delta"]["content"] for choice in choice_chunks(chunks)[1:-1]]
    assert not {"E", "N"} & set(contents)


async def test_the_streamed_and_the_unstreamed_answer_agree(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = duet(spell)
    fields: dict[str, Any] = {"n": 2, "top_logprobs": 2, "seed": 1}
    answer = await completion(client, **fields)
    chunks = await stream(client, **fields, stream_options=USAGE)
    for choice in answer["choices"]:
        index = choice["index"]
        assert content_of(chunks, index) == choice["message"]["content"]
        assert entries_of(chunks, index) == choice["logprobs"]["content"]
        assert finish_of(chunks, index) == choice["finish_reason"]
    assert chunks[-1]["usage"] == answer["usage"]
    requested = [
        {name: getattr(r, name) for name in ("n", "sampling", "max_tokens")} for r in engine.requests
    ]
    assert requested[0] == requested[1]

"""`logprobs` in answers: their shape, the tokens' bytes, and values that are not finite."""

import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from aleph_alpha_client import chat as aleph_alpha
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk
from tokenizers import Tokenizer

from inference.interface.requests import FinishReason, TokenLogprobs
from tests.app.contract.support import choice_chunks, completion, entries_of, logprobs_of, steps, stream
from tests.app.fakes import END_OF_TURN, FakeEngine, reply

Spell = Callable[[str | bytes], list[int]]


async def entries(client: httpx.AsyncClient, streamed: bool, **fields: Any) -> list[dict[str, Any]]:
    if streamed:
        return entries_of(await stream(client, **fields))
    return (await completion(client, **fields))["choices"][0]["logprobs"]["content"]


@pytest.mark.parametrize("fields", [{}, {"logprobs": False}, {"top_logprobs": 0}, {"logprobs": None}])
async def test_logprobs_are_null_when_not_requested(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, fields: dict[str, Any]
) -> None:
    engine.script = steps(spell("ab"))
    assert (await completion(client, **fields))["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("fields", [{"logprobs": True}, {"logprobs": True, "top_logprobs": 0}])
async def test_top_logprobs_are_an_empty_list_when_not_requested(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, fields: dict[str, Any], streamed: bool
) -> None:
    engine.script = steps(spell("ab"))
    given = await entries(client, streamed, **fields)
    assert given == [
        {"token": "a", "logprob": -spell("a")[0] / 64, "bytes": [97], "top_logprobs": []},
        {"token": "b", "logprob": -spell("b")[0] / 64, "bytes": [98], "top_logprobs": []},
    ]


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("fields", [{"top_logprobs": 3}, {"logprobs": False, "top_logprobs": 3}])
async def test_top_logprobs_alone_return_log_probabilities(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, fields: dict[str, Any], streamed: bool
) -> None:
    engine.script = steps(spell("ab"))
    assert [len(entry["top_logprobs"]) for entry in await entries(client, streamed, **fields)] == [3, 3]


@pytest.mark.parametrize("streamed", [True, False])
async def test_top_logprobs_keep_the_engines_values_and_order(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, streamed: bool
) -> None:
    ids = spell("xyz")
    measured = TokenLogprobs(-1.25, [(ids[2], -0.5), (ids[0], -1.25), (ids[1], -4.0)])
    engine.script = reply(spell("x"), logprobs=lambda _: measured)
    (entry,) = await entries(client, streamed, logprobs=True, top_logprobs=3)
    assert (entry["token"], entry["logprob"]) == ("x", -1.25)
    assert entry["top_logprobs"] == [
        {"token": "z", "logprob": -0.5, "bytes": [122]},
        {"token": "x", "logprob": -1.25, "bytes": [120]},
        {"token": "y", "logprob": -4.0, "bytes": [121]},
    ]


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
async def test_a_value_that_is_not_finite_is_sent_as_minus_9999(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, value: float, streamed: bool
) -> None:
    ids = spell("ab")
    engine.script = reply(ids[:1], logprobs=lambda _: TokenLogprobs(value, [(ids[0], -0.5), (ids[1], value)]))
    (entry,) = await entries(client, streamed, top_logprobs=2)
    assert entry["logprob"] == -9999.0
    assert [top["logprob"] for top in entry["top_logprobs"]] == [-0.5, -9999.0]


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("text", ["é", "日本", "a🙂b"])
async def test_bytes_are_the_tokens_own_bytes_even_within_a_character(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, text: str, streamed: bool
) -> None:
    engine.script = steps(*([token_id] for token_id in spell(text)))
    given = await entries(client, streamed, logprobs=True)
    assert [entry["bytes"] for entry in given] == [[byte] for byte in text.encode()]
    assert all(isinstance(entry["token"], str) for entry in given)


@pytest.mark.parametrize("streamed", [True, False])
async def test_top_logprobs_have_their_own_bytes(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, byte_ids: list[int], streamed: bool
) -> None:
    alternatives = [(byte_ids[0xC3], -1.0), (byte_ids[0xFF], -2.0), (byte_ids[0x20], -3.0)]
    engine.script = reply(spell("a"), logprobs=lambda _: TokenLogprobs(-0.5, alternatives))
    (entry,) = await entries(client, streamed, top_logprobs=3)
    assert [top["bytes"] for top in entry["top_logprobs"]] == [[0xC3], [0xFF], [0x20]]
    assert entry["top_logprobs"][2]["token"] == " "


@pytest.mark.parametrize("streamed", [True, False])
async def test_tokens_of_several_characters_keep_their_spaces(
    client: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Tokenizer, streamed: bool
) -> None:
    encoded = tiny_tokenizer.encode("Hello you")
    engine.script = steps(encoded.ids)
    given = await entries(client, streamed, logprobs=True)
    assert [entry["token"] for entry in given] == [token.replace("Ġ", " ") for token in encoded.tokens]
    assert [bytes(entry["bytes"]).decode() for entry in given] == [entry["token"] for entry in given]


@pytest.mark.parametrize("streamed", [True, False])
async def test_the_end_of_turn_token_has_no_entry(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, streamed: bool
) -> None:
    engine.script = reply(spell("ab"), logprobs=lambda token_id: logprobs_of(token_id, 0))
    assert [entry["token"] for entry in await entries(client, streamed, logprobs=True)] == ["a", "b"]


async def test_an_answer_without_tokens_has_an_empty_list_of_entries(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = steps()
    assert (await completion(client, logprobs=True))["choices"][0]["logprobs"] == {"content": []}


@pytest.mark.parametrize("streamed", [True, False])
async def test_the_end_of_turn_token_can_be_in_top_logprobs(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, streamed: bool
) -> None:
    end = END_OF_TURN
    engine.script = reply(spell("a"), logprobs=lambda _: TokenLogprobs(-0.5, [(end, -0.25)]))
    (entry,) = await entries(client, streamed, top_logprobs=1)
    (top,) = entry["top_logprobs"]
    assert (top["token"], top["logprob"]) == ("<|im_end|>", -0.25)


async def test_each_choice_has_its_own_entries(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    one, two = (steps(spell(text), index=index) for index, text in enumerate(["ab", "xyz"]))
    engine.script = lambda request: [*one(request), *two(request)]
    answer = await completion(client, n=2, logprobs=True)
    tokens = [[e["token"] for e in choice["logprobs"]["content"]] for choice in answer["choices"]]
    assert tokens == [["a", "b"], ["x", "y", "z"]]


CONTROL_TOKEN = 1  # <|im_start|>, which ends no turn


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("finish", FinishReason)
@pytest.mark.parametrize("before", ["", "ab"])
@pytest.mark.parametrize("after", ["", "c"])
async def test_control_tokens_have_entries_wherever_they_are(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    spell: Spell,
    before: str,
    after: str,
    finish: FinishReason,
    streamed: bool,
) -> None:
    ids = [*spell(before), CONTROL_TOKEN, CONTROL_TOKEN, *spell(after)]
    engine.script = steps(*([token_id] for token_id in ids), finish=finish)
    given = await entries(client, streamed, top_logprobs=1)
    assert [entry["token"] for entry in given] == [*before, "<|im_start|>", "<|im_start|>", *after]
    assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in given)
    assert [entry["logprob"] for entry in given] == [-token_id / 64 for token_id in ids]


async def test_entries_of_control_tokens_after_all_text_are_in_the_last_chunk(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(spell("a"), [CONTROL_TOKEN], finish=FinishReason.LENGTH)
    _, content, last = choice_chunks(await stream(client, logprobs=True))
    assert content["delta"] == {"content": "a"}
    assert [entry["token"] for entry in content["logprobs"]["content"]] == ["a"]
    assert (last["delta"], last["finish_reason"]) == ({}, "length")
    assert [entry["token"] for entry in last["logprobs"]["content"]] == ["<|im_start|>"]


async def test_clients_read_the_entries_in_the_last_chunk(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(spell("a"), [CONTROL_TOKEN])
    chunks = await stream(client, logprobs=True)
    state = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    (choice,) = state.get_final_completion().choices
    assert (choice.message.content, choice.finish_reason) == ("a", "stop")
    assert [entry.token for entry in choice.logprobs.content] == ["a", "<|im_start|>"]
    items = [aleph_alpha.stream_chat_item_from_json(chunk) for chunk in chunks]
    assert [items[1].content, items[2]] == ["a", aleph_alpha.FinishReason.Stop]


@pytest.mark.parametrize("streamed", [True, False])
async def test_control_tokens_alone_are_an_answer_without_text(
    client: httpx.AsyncClient, engine: FakeEngine, streamed: bool
) -> None:
    engine.script = steps([CONTROL_TOKEN], [CONTROL_TOKEN], finish=FinishReason.LENGTH)
    given = await entries(client, streamed, logprobs=True)
    assert [entry["token"] for entry in given] == ["<|im_start|>"] * 2
    answer = await completion(client, logprobs=True)
    assert answer["choices"][0]["message"]["content"] == ""
    assert answer["usage"]["completion_tokens"] == 2

"""`stop`: its valid values, where it ends the text, and that it is never returned."""

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from inference.interface.requests import FinishReason, GenerationRequest
from tests.app.contract.support import (
    assert_error,
    chat,
    completion,
    content_of,
    events,
    finish_of,
    steps,
    stream,
)
from tests.app.fakes import HANG, FakeEngine, Step

Spell = Callable[[str | bytes], list[int]]

# The generated text, the stop sequences, and the returned text.
CUTS = [
    ("hello world", "world", "hello "),
    ("hello world", ["world"], "hello "),
    ("hello world", ["nothing", "o w"], "hell"),
    ("hello world", ["wor", "o"], "hell"),
    ("hello", "h", ""),
    ("hello", "hello", ""),
    ("hello", "lo", "hel"),
    ("hello", "help", "hello"),
    ("aaab", "aab", "a"),
    ("abababc", "ababc", "ab"),
    ("abcabd", ["abd"], "abc"),
    ("a\n\nb", "\n\n", "a"),
    ("a\nb", "\n\n", "a\nb"),
    ("naïve", "ï", "na"),
    ("日本語", "本", "日"),
    ("日本語", "語本", "日本語"),
    ("🙂🙃", "🙃", "🙂"),
    ("a.b", ".*", "a.b"),
    ("one END two END", " END", "one"),
    ("User: hi", ["\nUser", "Assistant:"], "User: hi"),
    ("STOP stop", "stop", "STOP "),
]


async def text_and_reason(client: httpx.AsyncClient, streamed: bool, **fields: Any) -> tuple[str, str | None]:
    """The text and the finish reason."""
    if streamed:
        chunks = await stream(client, **fields)
        return content_of(chunks), finish_of(chunks)
    choice = (await completion(client, **fields))["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(("text", "stop", "kept"), CUTS)
async def test_the_text_ends_before_the_stop_sequence_however_it_is_split(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    spell: Spell,
    text: str,
    stop: str | list[str],
    kept: str,
    streamed: bool,
) -> None:
    ids = spell(text)
    for size in (1, 2, 3):
        engine.script = steps(*(ids[start : start + size] for start in range(0, len(ids), size)))
        assert await text_and_reason(client, streamed, stop=stop) == (kept, "stop")


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_stop_sequence_within_one_token_ends_the_text_there(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, tiny_tokenizer: Tokenizer, streamed: bool
) -> None:
    ids = tiny_tokenizer.encode("llo").ids
    assert len(ids) == 1
    engine.script = steps(spell("he"), ids)
    assert await text_and_reason(client, streamed, stop="l") == ("he", "stop")
    assert await text_and_reason(client, streamed, stop="lo") == ("hel", "stop")
    assert await text_and_reason(client, streamed, stop="el") == ("h", "stop")


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("finish", FinishReason)
async def test_the_beginning_of_a_stop_sequence_is_returned_when_the_text_ends_in_it(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, finish: FinishReason, streamed: bool
) -> None:
    engine.script = steps(*([token_id] for token_id in spell("wait, wor")), finish=finish)
    assert await text_and_reason(client, streamed, stop=["world", "or!"]) == ("wait, wor", finish.value)


@pytest.mark.parametrize("streamed", [True, False])
async def test_nothing_is_generated_after_the_stop_sequence(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, streamed: bool
) -> None:
    engine.script = steps(spell("abc"), spell("END"), HANG)
    async with asyncio.timeout(5):
        assert await text_and_reason(client, streamed, stop="END") == ("abc", "stop")
    assert engine.aborts[0][0] == engine.requests[0].request_id


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_choice_that_stops_does_not_stop_the_others(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, streamed: bool
) -> None:
    def play(request: GenerationRequest) -> Iterable[Step]:
        yield events(request, spell("a END b"), 0) + events(request, spell("one "), 1)
        yield events(request, spell("never"), 0) + events(request, spell("two"), 1, FinishReason.LENGTH)

    engine.script = play
    if streamed:
        chunks = await stream(client, n=2, stop=" END")
        texts = [content_of(chunks, 0), content_of(chunks, 1)]
        reasons = [finish_of(chunks, 0), finish_of(chunks, 1)]
    else:
        choices = (await completion(client, n=2, stop=" END"))["choices"]
        texts = [choice["message"]["content"] for choice in choices]
        reasons = [choice["finish_reason"] for choice in choices]
    assert texts == ["a", "one two"]
    assert reasons == ["stop", "length"]
    assert engine.aborts[0] == (engine.requests[0].request_id, 0)


async def test_usage_counts_the_tokens_of_the_stop_sequence(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(*([token_id] for token_id in spell("abcEND and more")))
    answer = await completion(client, stop="END")
    assert answer["usage"]["completion_tokens"] == len("abcEND")


async def test_a_stop_sequence_in_the_prompt_has_no_effect(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(spell("fine"))
    assert await text_and_reason(client, False, stop=["hi", "assistant"]) == ("fine", "stop")


async def test_stop_sequences_of_one_request_do_not_stop_another(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(spell("abc"))
    assert (await text_and_reason(client, False, stop="b"))[0] == "a"
    assert (await text_and_reason(client, False))[0] == "abc"


@pytest.mark.parametrize(
    "stop",
    [[], ["a"] * 16, [str(number) for number in range(16)], "x" * 256, ["🙂" * 256], " ", "\x00"],
    ids=lambda stop: repr(stop)[:20],
)
async def test_stops_within_the_limits_are_accepted(client: httpx.AsyncClient, stop: Any) -> None:
    assert (await chat(client, stop=stop)).status_code == 200


@pytest.mark.parametrize(
    "stop",
    [
        "",
        [""],
        ["a", ""],
        [str(number) for number in range(17)],
        "x" * 257,
        ["a", "x" * 257],
        1,
        1.5,
        True,
        {},
        {"a": "b"},
        [1],
        [None],
        [["a"]],
        ["a", True],
    ],
    ids=lambda stop: json.dumps(stop)[:20],
)
async def test_an_invalid_stop_is_refused(client: httpx.AsyncClient, engine: FakeEngine, stop: Any) -> None:
    error = assert_error(await chat(client, stop=stop), 400, "INVALID_REQUEST", "stop")
    assert error["param"].startswith("stop")
    assert engine.requests == []

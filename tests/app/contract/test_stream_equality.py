"""The streamed and the unstreamed answer agree, whatever the tokens, their steps and the stop sequences."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.interface.requests import FinishReason
from tests.app.contract.support import (
    choice_chunks,
    completion,
    content_of,
    entries_of,
    finish_of,
    steps,
    stream,
)
from tests.app.fakes import END_OF_TURN, FakeEngine

Spell = Callable[[str | bytes], list[int]]

LETTERS = st.text("ab é日🙂", max_size=14)
STOPS = st.lists(st.text("ab é日🙂", min_size=1, max_size=4), max_size=3)
CUTTING = st.lists(st.integers(1, 4), max_size=20)
FINISHES = st.sampled_from(FinishReason)
SPOKEN = [token_id for token_id in range(300) if token_id != END_OF_TURN]
SLOW = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def grouped(ids: list[int], sizes: list[int]) -> list[list[int]]:
    """Groups the tokens into steps of these sizes, and the rest into steps of one token."""
    groups, start = [], 0
    for size in [*sizes, *[1] * len(ids)]:
        if start < len(ids):
            groups.append(ids[start : start + size])
            start += size
    return groups


def cut(raw: bytes, stops: list[str]) -> str:
    """The expected text if bytes arrive one by one and the first complete stop sequence ends it."""
    for end in range(len(raw) + 1):
        text = raw[:end].decode(errors="ignore")
        found = [text.index(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)]
    return raw.decode()


async def both(client: httpx.AsyncClient, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Checks that both answers agree. Returns the unstreamed answer's choice and the streamed chunks."""
    (choice,) = (await completion(client, **fields))["choices"]
    chunks = await stream(client, **fields)
    assert content_of(chunks).encode() == choice["message"]["content"].encode()
    assert finish_of(chunks) == choice["finish_reason"]
    entries = (choice["logprobs"] or {"content": []})["content"]
    assert json.dumps(entries_of(chunks)) == json.dumps(entries)
    assert all(part["delta"]["content"] for part in choice_chunks(chunks)[1:-1])
    return choice, chunks


@SLOW
@given(text=LETTERS, stops=STOPS, sizes=CUTTING, finish=FINISHES)
async def test_answers_agree_with_stop_sequences_and_split_characters(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    spell: Spell,
    text: str,
    stops: list[str],
    sizes: list[int],
    finish: FinishReason,
) -> None:
    ids = spell(text)
    if not ids:
        finish = FinishReason.STOP
    engine.script = steps(*grouped(ids, sizes), finish=finish)
    choice, chunks = await both(client, stop=stops, logprobs=True, top_logprobs=1)
    assert choice["message"]["content"] == cut(text.encode(), stops)
    for part in choice_chunks(chunks)[1:-1]:
        carried = b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]["content"])
        assert carried == part["delta"]["content"].encode()


@SLOW
@given(raw=st.binary(max_size=12), sizes=CUTTING, stops=STOPS, finish=FINISHES)
async def test_answers_agree_with_bytes_that_are_not_utf_8(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    spell: Spell,
    raw: bytes,
    sizes: list[int],
    stops: list[str],
    finish: FinishReason,
) -> None:
    ids = spell(raw)
    if not ids:
        finish = FinishReason.STOP
    engine.script = steps(*grouped(ids, sizes), finish=finish)
    await both(client, stop=stops, logprobs=True)


@SLOW
@given(ids=st.lists(st.sampled_from(SPOKEN), max_size=12), sizes=CUTTING, stops=STOPS)
async def test_answers_agree_with_any_tokens_of_the_vocabulary(
    client: httpx.AsyncClient, engine: FakeEngine, ids: list[int], sizes: list[int], stops: list[str]
) -> None:
    engine.script = steps(*grouped(ids, sizes))
    await both(client, stop=stops, top_logprobs=2)


@pytest.mark.parametrize("text", ["plain", "日本語", "a é 🙂"])
async def test_without_a_stop_every_token_has_an_entry(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, text: str
) -> None:
    ids = spell(text)
    engine.script = steps(*([token_id] for token_id in ids))
    choice, _ = await both(client, logprobs=True)
    assert [entry["logprob"] for entry in choice["logprobs"]["content"]] == [-id / 64 for id in ids]

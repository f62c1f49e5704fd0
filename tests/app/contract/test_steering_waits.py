"""A chat waits for the concepts that it reads or that decide on its steering, as for those that steer it."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.concepts.concept import digest_of
from app.errors import ApiError, ErrorCode
from inference.interface.requests import GenerationRequest
from tests.app.contract.support import CONCEPTS, assert_error, chat, store_concepts, until
from tests.app.fakes import HANG, FakeEngine, FakeGeneration, pausing, train_badly

FIELDS = {
    "steering_readings": {"steering_readings": ["b"]},
    "steering_when": {"steering_concepts": ["a"], "steering_when": {"concept": "b", "above": 0}},
}
by_field = pytest.mark.parametrize(("field", "fields"), FIELDS.items(), ids=list(FIELDS))


def digest(name: str) -> str:
    return digest_of(CONCEPTS[name])


@pytest.fixture
async def client(serve: Any, tmp_path: Path) -> httpx.AsyncClient:
    """A client of a new gateway, whose concepts are not trained."""
    store_concepts(tmp_path / "data", {"a": CONCEPTS["a"], "b": CONCEPTS["b"]})
    return await serve()


@by_field
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_chat_waits_until_the_concept_can_be_used(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, fields: dict[str, Any], streamed: bool
) -> None:
    go_on = asyncio.Event()
    engine.training = pausing(go_on)
    chatting = asyncio.create_task(chat(client, **fields, stream=streamed))
    await until(lambda: digest("b") in engine.in_training)
    await asyncio.sleep(0.01)
    assert engine.requests == []
    go_on.set()
    assert (await chatting).status_code == 200
    assert len(engine.requests) == 1


@by_field
async def test_a_concept_that_the_model_cannot_use_is_reported_with_its_field(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, fields: dict[str, Any]
) -> None:
    engine.training = lambda command: (
        train_badly(command) if command.concept == digest("b") else pausing()(command)
    )
    response = await chat(client, **fields)
    words = ("_worker/b cannot be used with this model", "differ in nothing")
    assert_error(response, 400, "INVALID_REQUEST", *words, param=field)
    assert engine.requests == []


@by_field
async def test_a_concept_deleted_while_the_chat_waits_is_reported_with_its_field(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, fields: dict[str, Any]
) -> None:
    engine.training = lambda command: pausing(*[HANG] * (command.concept == digest("b")))(command)
    chatting = asyncio.create_task(chat(client, **fields))
    await until(lambda: digest("b") in engine.in_training)
    assert (await client.delete("/steering_concepts/b")).status_code == 204
    assert_error(await chatting, 404, "UNKNOWN_STEERING_CONCEPT", "_worker/b", param=field)


def refuse(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, before: Callable[[], Awaitable[Any]]) -> None:
    """Makes the engine refuse requests like a worker that has just dropped concept b."""

    async def submit(request: GenerationRequest) -> FakeGeneration:
        await before()
        raise ApiError(ErrorCode.UNKNOWN_STEERING_CONCEPT, f"no such steering concept: {digest('b')}")

    monkeypatch.setattr(engine, "submit", submit)


@by_field
async def test_a_concept_deleted_just_before_its_use_is_reported_with_its_field(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    fields: dict[str, Any],
) -> None:
    refuse(engine, monkeypatch, lambda: client.delete("/steering_concepts/b"))
    response = await chat(client, **fields)
    assert_error(response, 404, "UNKNOWN_STEERING_CONCEPT", "_worker/b", param=field)
    assert digest("b") not in response.text


@by_field
async def test_a_concept_that_the_engine_lost_is_trained_again_for_the_next_chat(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    fields: dict[str, Any],
) -> None:
    with monkeypatch.context() as patch:
        refuse(engine, patch, lambda: asyncio.sleep(0))
        assert_error(await chat(client, **fields), 503, "UNAVAILABLE")
    assert (await chat(client, **fields)).status_code == 200
    assert [training.concept for training in engine.trainings].count(digest("b")) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"steering_concepts": ["b"], "steering_strength": 0},
        {"steering_concepts": ["a", "b"], "steering_strength": {"b": 0}},
        {"steering_when": {"concept": "b", "above": 0}},
    ],
    ids=str,
)
async def test_a_concept_without_effect_is_not_trained(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    assert (await chat(client, **fields)).status_code == 200
    assert digest("b") not in [training.concept for training in engine.trainings]

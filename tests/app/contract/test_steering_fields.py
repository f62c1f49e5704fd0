"""`steering_concepts` and `steering_strength` in a chat request."""

import json
from typing import Any

import httpx
import pytest

from app.concepts.concept import digest_of
from inference.interface.requests import SteeringSpec
from tests.app.contract.support import CONCEPTS, HASHED_NAME, LONGEST_NAME, assert_error, chat, sent
from tests.app.fakes import FakeEngine


def digest(name: str) -> str:
    """The engine's key for the concept: the digest of its examples."""
    return digest_of(CONCEPTS[name])


@pytest.mark.parametrize(
    "fields", [{}, {"steering_concepts": []}, {"steering_strength": 1.5}], ids=json.dumps
)
async def test_without_concepts_nothing_is_steered(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    assert (await sent(client, engine, **fields)).steering is None


@pytest.mark.parametrize("name", ["a", "A-b_9", "-", "_", "0", "_worker", HASHED_NAME, LONGEST_NAME])
async def test_a_concept_reaches_the_engine_at_strength_one(
    client: httpx.AsyncClient, engine: FakeEngine, name: str
) -> None:
    request = await sent(client, engine, steering_concepts=[f"_worker/{name}"])
    assert request.steering == SteeringSpec({digest(name): 1.0})


@pytest.mark.parametrize("name", ["a", "A-b_9", "-", HASHED_NAME, LONGEST_NAME])
async def test_an_id_without_the_prefix_names_the_same_concept(
    client: httpx.AsyncClient, engine: FakeEngine, name: str
) -> None:
    request = await sent(client, engine, steering_concepts=[name])
    assert request.steering == SteeringSpec({digest(name): 1.0})


async def test_several_concepts_are_added_together(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    request = await sent(client, engine, steering_concepts=["_worker/b", "a", "_worker/c"])
    assert request.steering == SteeringSpec(dict.fromkeys(map(digest, "abc"), 1.0))


async def test_concepts_with_the_same_examples_count_once(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    request = await sent(client, engine, steering_concepts=["a", "same-as-a"])
    assert request.steering == SteeringSpec({digest("a"): 1.0})


@pytest.mark.parametrize("given", [["_worker/a", "_worker/a"], ["a", "a", "a"], ["a", "_worker/a"]])
async def test_a_repeated_concept_counts_once(
    client: httpx.AsyncClient, engine: FakeEngine, given: list[str]
) -> None:
    request = await sent(client, engine, steering_concepts=given)
    assert request.steering == SteeringSpec({digest("a"): 1.0})


@pytest.mark.parametrize("strength", [-2, -0.5, 0.25, 1, 2])
async def test_the_strength_reaches_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine, strength: float
) -> None:
    request = await sent(client, engine, steering_concepts=["a"], steering_strength=strength)
    assert request.steering == SteeringSpec({digest("a"): float(strength)})


@pytest.mark.parametrize("strength", ["0", "0.0", "-0.0", "0e5"])
async def test_strength_zero_is_no_steering(
    client: httpx.AsyncClient, engine: FakeEngine, strength: str
) -> None:
    fields = {"steering_concepts": ["a"], "steering_strength": json.loads(strength)}
    assert (await sent(client, engine, **fields)).steering is None


@pytest.mark.parametrize(
    "concept",
    [
        "",
        "_worker/",
        "_worker/a\n",
        "a\n",
        "\na",
        " a",
        "_worker/a b",
        "_worker/a/b",
        "_worker/a.b",
        "_worker/ä",
        "_worker/٣",
        "_worker/ſ",
        "_worker//a",
        "_Worker/a",
        "worker/a",
        "other/a",
        "/a",
        "../a",
        "_worker/" + "a" * 65,
        "a" * 65,
    ],
)
async def test_a_malformed_concept_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, concept: str
) -> None:
    response = await chat(client, steering_concepts=["_worker/good", concept])
    error = assert_error(response, 400, "INVALID_REQUEST", "must match ^(_worker/)?[a-zA-Z0-9-_]{1,64}$, got")
    assert error["param"] == "steering_concepts[1]"
    assert engine.requests == []


@pytest.mark.parametrize(
    "concepts", ["_worker/a", 1, True, {}, {"_worker/a": 1}, [1], [None], [["a"]]], ids=json.dumps
)
async def test_concepts_of_another_type_are_refused(
    client: httpx.AsyncClient, engine: FakeEngine, concepts: Any
) -> None:
    response = await chat(client, steering_concepts=concepts)
    assert_error(response, 400, "INVALID_REQUEST", "steering_concepts")
    assert engine.requests == []


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("strength", [1, 0])
async def test_an_unknown_concept_is_not_found(
    client: httpx.AsyncClient, engine: FakeEngine, streamed: bool, strength: int
) -> None:
    response = await chat(
        client, steering_concepts=["a", "nobody"], steering_strength=strength, stream=streamed
    )
    assert_error(response, 404, "UNKNOWN_STEERING_CONCEPT", "_worker/nobody", param="steering_concepts")
    assert engine.requests == []


async def test_an_unknown_concept_is_named_in_full(client: httpx.AsyncClient) -> None:
    response = await chat(client, steering_concepts=["z" * 64])
    assert_error(response, 404, "UNKNOWN_STEERING_CONCEPT", "_worker/" + "z" * 64 + " ")


async def test_a_concept_named_a_thousand_times_counts_once(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    request = await sent(client, engine, steering_concepts=["_worker/a", "a"] * 500)
    assert request.steering == SteeringSpec({digest("a"): 1.0})

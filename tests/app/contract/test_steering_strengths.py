"""`steering_strength` as an object: a strength for each concept."""

import json
from typing import Any

import httpx
import pytest

from app.concepts.concept import digest_of
from inference.interface.requests import SteeringSpec
from tests.app.contract.support import CONCEPTS, assert_error, chat, chat_with_literal, sent
from tests.app.fakes import FakeEngine


def digest(name: str) -> str:
    return digest_of(CONCEPTS[name])


@pytest.mark.parametrize(
    ("given", "a", "b"),
    [
        ({"a": 0.5, "b": -2}, 0.5, -2.0),
        ({"_worker/a": 2, "b": 0.25}, 2.0, 0.25),
        ({"b": 1.5}, 1.0, 1.5),
        ({"a": 0.5, "_worker/a": 0.5}, 0.5, 1.0),
        ({}, 1.0, 1.0),
    ],
    ids=str,
)
async def test_each_concept_has_its_strength_or_one(
    client: httpx.AsyncClient, engine: FakeEngine, given: dict[str, float], a: float, b: float
) -> None:
    request = await sent(client, engine, steering_concepts=["_worker/a", "b"], steering_strength=given)
    assert request.steering == SteeringSpec({digest("a"): a, digest("b"): b})


@pytest.mark.parametrize("zero", ["0", "-0.0", "0e5"])
async def test_a_concept_of_strength_zero_does_not_steer(
    client: httpx.AsyncClient, engine: FakeEngine, zero: str
) -> None:
    fields = {"steering_concepts": ["a", "b"], "steering_strength": {"a": json.loads(zero)}}
    assert (await sent(client, engine, **fields)).steering == SteeringSpec({digest("b"): 1.0})
    assert digest("a") not in [training.concept for training in engine.trainings]
    fields["steering_strength"]["b"] = json.loads(zero)
    assert (await sent(client, engine, **fields)).steering is None


async def test_the_engine_gets_the_strengths_in_the_same_order_whatever_the_request_has(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    orders = []
    for names in ("abc", "cba", "bca"):
        strengths = {name: 0.5 + ord(name) / 256 for name in names}
        fields = {"steering_concepts": list(names), "steering_strength": strengths}
        steering = (await sent(client, engine, **fields)).steering
        assert steering is not None
        orders.append(list(steering.strengths.items()))
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize("given", ["b", "_worker/b"])
@pytest.mark.parametrize("concepts", [["a"], []])
async def test_a_concept_that_does_not_steer_has_no_strength(
    client: httpx.AsyncClient, engine: FakeEngine, concepts: list[str], given: str
) -> None:
    response = await chat(client, steering_concepts=concepts, steering_strength={given: 1})
    words = ("must be one of steering_concepts", "_worker/b")
    assert_error(response, 400, "INVALID_REQUEST", *words, param="steering_strength['_worker/b']")
    assert engine.requests == []


async def test_a_strength_needs_a_concept_id(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await chat(client, steering_concepts=["a"], steering_strength={"a\n": 1})
    assert_error(
        response, 400, "INVALID_REQUEST", "must match ^(_worker/)?", param="steering_strength['a\\n']"
    )
    assert engine.requests == []


@pytest.mark.parametrize("literal", ["2.001", "-3", '"1"', "true", "null", "[1]", "{}", "9" * 400])
async def test_each_strength_is_a_number_in_the_range(
    client: httpx.AsyncClient, engine: FakeEngine, literal: str
) -> None:
    given = f'{{"a": 1, "b": {literal}}}'
    response = await chat_with_literal(client, "steering_strength", given, steering_concepts=["a", "b"])
    rule = "steering_strength.b must be a number from -2 to 2, got"
    assert_error(response, 400, "INVALID_REQUEST", rule, param="steering_strength.b")
    assert engine.requests == []


@pytest.mark.parametrize("literal", ["2.001", "-3", '"0.5"', '""', "true", "false", "[1]", "9" * 400])
async def test_a_strength_is_a_number_or_an_object(
    client: httpx.AsyncClient, engine: FakeEngine, literal: str
) -> None:
    response = await chat_with_literal(client, "steering_strength", literal, steering_concepts=["a"])
    rule = "must be a number from -2 to 2, or an object"
    assert_error(response, 400, "INVALID_REQUEST", rule, param="steering_strength")
    assert engine.requests == []


@pytest.mark.parametrize("given", [{"a": 0.5, "_worker/a": 1}, {"_worker/a": 0, "a": 1}], ids=str)
async def test_both_forms_of_an_id_need_the_same_strength(
    client: httpx.AsyncClient, engine: FakeEngine, given: dict[str, float]
) -> None:
    response = await chat(client, steering_concepts=["a"], steering_strength=given)
    assert_error(response, 400, "INVALID_REQUEST", "with and without _worker/")
    assert engine.requests == []


@pytest.mark.parametrize(
    "given", [{"a": 0.5}, {"a": 0.5, "same-as-a": 0.25}, {"same-as-a": 0}, {"a": 0}], ids=str
)
@pytest.mark.parametrize("streamed", [True, False])
async def test_concepts_with_the_same_examples_need_the_same_strength(
    client: httpx.AsyncClient, engine: FakeEngine, given: dict[str, Any], streamed: bool
) -> None:
    response = await chat(
        client, steering_concepts=["a", "same-as-a"], steering_strength=given, stream=streamed
    )
    words = ("_worker/a and _worker/same-as-a", "same number")
    assert_error(response, 400, "INVALID_REQUEST", *words, param="steering_strength")
    assert engine.requests == []


@pytest.mark.parametrize("given", [0.5, {"a": 0.5, "same-as-a": 0.5}], ids=str)
async def test_concepts_with_the_same_examples_and_strength_count_once(
    client: httpx.AsyncClient, engine: FakeEngine, given: Any
) -> None:
    request = await sent(client, engine, steering_concepts=["a", "same-as-a"], steering_strength=given)
    assert request.steering == SteeringSpec({digest("a"): 0.5})

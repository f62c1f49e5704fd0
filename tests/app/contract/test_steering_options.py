"""`steering_scope`, `steering_mode` and `steering_when` in a chat request."""

import json
from typing import Any

import httpx
import pytest

from app.concepts.concept import digest_of
from inference.interface.requests import SteeringCondition, SteeringMode, SteeringScope, SteeringSpec
from tests.app.contract.support import CONCEPTS, assert_error, chat, chat_with_literal, sent
from tests.app.fakes import FakeEngine


def digest(name: str) -> str:
    return digest_of(CONCEPTS[name])


@pytest.mark.parametrize("scope", SteeringScope)
@pytest.mark.parametrize("mode", SteeringMode)
async def test_scope_and_mode_reach_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine, scope: SteeringScope, mode: SteeringMode
) -> None:
    fields = {"steering_scope": scope.value, "steering_mode": mode.value}
    request = await sent(client, engine, steering_concepts=["a"], **fields)
    assert request.steering == SteeringSpec({digest("a"): 1.0}, scope, mode)
    assert (await sent(client, engine, **fields)).steering is None


@pytest.mark.parametrize("given", ["", "All", "all ", "everything", 0, True, [], ["all"], {}], ids=json.dumps)
@pytest.mark.parametrize(
    ("field", "rule"),
    [
        ("steering_scope", "must be 'all', 'prompt' or 'answer'"),
        ("steering_mode", "must be 'add', 'ablate' or 'clamp'"),
    ],
)
async def test_another_scope_or_mode_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, rule: str, given: Any
) -> None:
    assert_error(await chat(client, **{field: given}), 400, "INVALID_REQUEST", rule, param=field)
    assert engine.requests == []


@pytest.mark.parametrize("strength", [-2, -0.5, 1.5, 2])
async def test_ablation_takes_each_strength_of_the_range(
    client: httpx.AsyncClient, engine: FakeEngine, strength: float
) -> None:
    fields = {"steering_concepts": ["a"], "steering_mode": "ablate", "steering_strength": strength}
    steering = (await sent(client, engine, **fields)).steering
    assert steering == SteeringSpec({digest("a"): float(strength)}, mode=SteeringMode.ABLATE)


@pytest.mark.parametrize("concept", ["b", "_worker/b"])
@pytest.mark.parametrize("scope", ["all", "answer"])
@pytest.mark.parametrize(
    "bounds",
    [{"above": 0.5}, {"below": -1}, {"above": 0, "below": 0.25}, {"above": 1, "below": None}],
    ids=json.dumps,
)
async def test_a_condition_reaches_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine, bounds: dict[str, Any], scope: str, concept: str
) -> None:
    when = {"concept": concept, **bounds}
    fields = {"steering_concepts": ["a"], "steering_scope": scope, "steering_when": when}
    condition = SteeringCondition(digest("b"), bounds.get("above"), bounds.get("below"))
    request = await sent(client, engine, **fields)
    assert request.steering == SteeringSpec({digest("a"): 1.0}, SteeringScope(scope), condition=condition)


@pytest.mark.parametrize(
    ("when", "at", "rule"),
    [
        ({"concept": "a"}, "", "must have above or below"),
        ({"concept": "a", "above": None}, "", "must have above or below"),
        ({"above": 1}, ".concept", "is required"),
        ({"concept": None, "above": 1}, ".concept", "is required"),
        ({"concept": "a\n", "above": 1}, ".concept", "must match ^(_worker/)?"),
        ({"concept": ["a"], "above": 1}, ".concept", "must be a string"),
        ({"concept": "a", "above": "1"}, ".above", "must be a number"),
        ({"concept": "a", "below": True}, ".below", "must be a number"),
        ({"concept": "a", "above": 10**400}, ".above", "must be a number"),
        ({"concept": "a", "above": 1, "below": 1}, ".above", "must be less than below"),
        ({"concept": "a", "above": 1, "below": 0.5}, ".above", "must be less than below"),
        ({"concept": "a", "above": 1, "over": 2}, ".over", "is not a known field"),
        ("a", "", "must be an object"),
        (["a"], "", "must be an object"),
        (True, "", "must be an object"),
        ({}, ".concept", "is required"),
    ],
    ids=str,
)
async def test_a_malformed_condition_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, when: Any, at: str, rule: str
) -> None:
    response = await chat(client, steering_concepts=["a"], steering_when=when)
    path = f"steering_when{at}"
    assert_error(response, 400, "INVALID_REQUEST", f"{path} {rule}", param=path)
    assert engine.requests == []


@pytest.mark.parametrize("bound", ["NaN", "Infinity", "-1e400"])
async def test_a_bound_must_be_finite(client: httpx.AsyncClient, engine: FakeEngine, bound: str) -> None:
    when = f'{{"concept": "a", "above": {bound}}}'
    assert_error(await chat_with_literal(client, "steering_when", when), 400, "INVALID_REQUEST")
    assert engine.requests == []


@pytest.mark.parametrize("concepts", [["a"], []])
async def test_a_condition_cannot_steer_the_prompt(
    client: httpx.AsyncClient, engine: FakeEngine, concepts: list[str]
) -> None:
    when = {"concept": "a", "above": 0}
    response = await chat(client, steering_concepts=concepts, steering_when=when, steering_scope="prompt")
    words = ("must be all or answer", "steering_when", "'prompt'")
    assert_error(response, 400, "INVALID_REQUEST", *words, param="steering_scope")
    assert engine.requests == []


@pytest.mark.parametrize("fields", [{}, {"steering_concepts": ["a"], "steering_strength": 0}], ids=json.dumps)
async def test_a_condition_on_nothing_has_no_effect_but_its_concept_must_exist(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    when = {"concept": "b", "above": 0}
    assert (await sent(client, engine, steering_when=when, **fields)).steering is None
    assert digest("b") not in [training.concept for training in engine.trainings]
    when["concept"] = "nobody"
    response = await chat(client, steering_when=when, **fields)
    assert_error(response, 404, "UNKNOWN_STEERING_CONCEPT", "_worker/nobody", param="steering_when")
    assert len(engine.requests) == 1


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_condition_on_an_unknown_concept_is_not_found(
    client: httpx.AsyncClient, engine: FakeEngine, streamed: bool
) -> None:
    when = {"concept": "nobody", "above": 0}
    response = await chat(client, steering_concepts=["a"], steering_when=when, stream=streamed)
    assert_error(response, 404, "UNKNOWN_STEERING_CONCEPT", "_worker/nobody", param="steering_when")
    assert engine.requests == []

"""`logit_bias`: an object from token ids, as strings, to finite numbers."""

import json
from typing import Any

import httpx
import pytest

from tests.app.contract.support import assert_error, chat, chat_with_literal, sent
from tests.app.fakes import FakeEngine


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"0": 1}, {0: 1.0}),
        ({"5": -100, "6": 100}, {5: -100.0, 6: 100.0}),
        ({"10": 0.25, "11": -0.25}, {10: 0.25, 11: -0.25}),
        ({"5": -1e300, "7": 250}, {5: -1e300, 7: 250.0}),
    ],
    ids=json.dumps,
)
async def test_biases_reach_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine, given: dict[str, float], expected: dict[int, float]
) -> None:
    bias = (await sent(client, engine, logit_bias=given)).sampling.logit_bias
    assert bias == expected
    assert all(isinstance(value, float) for value in bias.values())


async def test_the_last_id_of_the_vocabulary_can_be_biased(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    last = engine.model.vocab_size - 1
    assert (await sent(client, engine, logit_bias={str(last): 1})).sampling.logit_bias == {last: 1.0}


async def test_the_first_id_outside_the_vocabulary_is_named_and_refused(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    key = str(engine.model.vocab_size)
    assert_error(await chat(client, logit_bias={key: 1}), 400, "INVALID_REQUEST", "logit_bias", key)
    assert engine.requests == []


@pytest.mark.parametrize(
    "key",
    [
        "-1",
        "1.0",
        "1e1",
        "abc",
        "+5",
        " 5",
        "5 ",
        "5\n",
        "05",
        "1_0",
        "0x5",
        "٥",
        "²",
        "999999999999999999999",
    ],
)
async def test_a_key_that_is_not_a_token_id_is_named_and_refused(
    client: httpx.AsyncClient, engine: FakeEngine, key: str
) -> None:
    response = await chat(client, logit_bias={"3": 1, key: 1})
    error = assert_error(response, 400, "INVALID_REQUEST", "logit_bias", key.strip())
    assert error["param"].startswith("logit_bias")
    assert engine.requests == []


async def test_an_empty_key_is_refused(client: httpx.AsyncClient) -> None:
    assert_error(await chat(client, logit_bias={"": 1}), 400, "INVALID_REQUEST", "logit_bias")


@pytest.mark.parametrize("value", ["1", True, None, [1], {}, 10**400], ids=lambda value: repr(value)[:12])
async def test_a_value_that_is_not_a_finite_number_is_refused_with_its_key(
    client: httpx.AsyncClient, engine: FakeEngine, value: Any
) -> None:
    response = await chat(client, logit_bias={"3": 0, "17": value})
    assert_error(response, 400, "INVALID_REQUEST", "logit_bias", "17")
    assert engine.requests == []


@pytest.mark.parametrize("literal", ["1e400", "-1e400"])
async def test_a_value_that_overflows_is_refused_with_its_key(
    client: httpx.AsyncClient, literal: str
) -> None:
    response = await chat_with_literal(client, "logit_bias", f'{{"17": {literal}}}')
    assert_error(response, 400, "INVALID_REQUEST", "logit_bias", "17")


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
async def test_nan_and_infinity_are_refused(
    client: httpx.AsyncClient, engine: FakeEngine, literal: str
) -> None:
    response = await chat_with_literal(client, "logit_bias", f'{{"17": {literal}}}')
    assert_error(response, 400, "INVALID_REQUEST")
    assert engine.requests == []


@pytest.mark.parametrize("value", [[], [1], "1", 1, True, [["3", 1]]], ids=json.dumps)
async def test_a_logit_bias_that_is_not_an_object_is_refused(client: httpx.AsyncClient, value: Any) -> None:
    assert_error(await chat(client, logit_bias=value), 400, "INVALID_REQUEST", param="logit_bias")


async def test_every_token_of_the_vocabulary_can_be_biased_at_once(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    given = {str(token_id): token_id / 8 for token_id in range(engine.model.vocab_size)}
    bias = (await sent(client, engine, logit_bias=given)).sampling.logit_bias
    assert bias == {int(key): value for key, value in given.items()}

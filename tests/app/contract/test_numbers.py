"""Numbers in a request: they reach the engine unchanged, ranges are enforced, and types are strict."""

import json

import httpx
import pytest

from inference.interface.requests import SamplingParams
from tests.app.contract.support import assert_error, body, chat, chat_with_literal, post, sent
from tests.app.fakes import FakeEngine

RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}
COUNTS = ("top_logprobs", "top_k", "n", "max_tokens", "max_completion_tokens", "maximum_tokens")
NUMBERS = (*RANGES, "steering_strength")
BELOW = [(field, low, low - 0.001) for field, (low, _) in RANGES.items()]
ABOVE = [(field, high, high + 0.001) for field, (_, high) in RANGES.items()]
INTEGER_RANGES = [
    ("top_logprobs", -1, 0),
    ("top_logprobs", 21, 20),
    ("top_k", 0, 1),
    ("top_k", -1, 1),
    ("n", 0, 1),
    ("n", -3, 1),
    ("max_tokens", 0, 1),
    ("max_tokens", -1, 1),
    ("max_completion_tokens", 0, 1),
    ("maximum_tokens", 0, 1),
]
NOT_NUMBERS = ['"0.5"', '"1"', "true", "false", "[1]", "{}", '""']
NOT_JSON_NUMBERS = ["NaN", "Infinity", "-Infinity"]


async def test_without_sampling_fields_the_engine_gets_the_defaults(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    assert (await sent(client, engine)).sampling == SamplingParams()


@pytest.mark.parametrize("field", RANGES)
async def test_a_number_within_its_range_reaches_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine, field: str
) -> None:
    low, high = RANGES[field]
    for value in (low, low + 0.25, 0.3, high):
        request = await sent(client, engine, **{field: value})
        assert request.sampling == SamplingParams(**{field: float(value)})


@pytest.mark.parametrize("field", RANGES)
@pytest.mark.parametrize("literal", ["1", "1.0", "1e0", "10e-1", "0.1E1"])
async def test_a_number_may_be_written_in_any_json_notation(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, literal: str
) -> None:
    response = await chat_with_literal(client, field, literal)
    assert response.status_code == 200
    assert getattr(engine.requests[0].sampling, field) == 1.0


@pytest.mark.parametrize(("field", "bound", "value"), [*BELOW, *ABOVE])
async def test_a_number_out_of_range_is_refused_with_the_rule_and_the_value(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, bound: float, value: float
) -> None:
    response = await chat(client, **{field: value})
    assert_error(response, 400, "INVALID_REQUEST", field, str(bound), str(value), param=field)
    assert engine.requests == []


@pytest.mark.parametrize(("field", "value", "bound"), INTEGER_RANGES)
async def test_an_integer_out_of_range_is_refused_with_the_rule_and_the_value(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, value: int, bound: int
) -> None:
    response = await chat(client, **{field: value})
    assert_error(response, 400, "INVALID_REQUEST", field, str(bound), str(value), param=field)
    assert engine.requests == []


@pytest.mark.parametrize("value", [-2.001, 2.001, 3, -100])
async def test_a_steering_strength_out_of_range_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, value: float
) -> None:
    response = await chat(client, steering_concepts=["_worker/a"], steering_strength=value)
    assert_error(response, 400, "INVALID_REQUEST", "2", str(value), param="steering_strength")
    assert engine.requests == []


async def test_a_steering_strength_out_of_range_is_refused_even_without_concepts(
    client: httpx.AsyncClient,
) -> None:
    assert_error(await chat(client, steering_strength=2.5), 400, "INVALID_REQUEST", param="steering_strength")


@pytest.mark.parametrize("literal", NOT_NUMBERS)
@pytest.mark.parametrize("field", [*RANGES, *COUNTS])
async def test_a_value_of_another_type_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, literal: str
) -> None:
    response = await chat_with_literal(client, field, literal)
    assert_error(response, 400, "INVALID_REQUEST", field, param=field)
    assert engine.requests == []


@pytest.mark.parametrize("literal", [*NOT_JSON_NUMBERS, "1e400", "-1e400"])
@pytest.mark.parametrize("field", [*NUMBERS, *COUNTS])
async def test_nan_and_infinity_are_refused(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, literal: str
) -> None:
    assert_error(await chat_with_literal(client, field, literal), 400, "INVALID_REQUEST")
    assert engine.requests == []


@pytest.mark.parametrize("literal", ["1.5", "1.0", "1e0", "-0.0"])
@pytest.mark.parametrize("field", COUNTS)
async def test_a_number_with_a_fraction_or_an_exponent_is_refused_as_an_integer(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, literal: str
) -> None:
    assert_error(await chat_with_literal(client, field, literal), 400, "INVALID_REQUEST", field, param=field)
    assert engine.requests == []


@pytest.mark.parametrize("digits", [25, 400, 5000])
@pytest.mark.parametrize("field", [*NUMBERS, "top_logprobs", "n"])
async def test_a_huge_integer_is_out_of_range(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, digits: int
) -> None:
    assert_error(await chat_with_literal(client, field, "9" * digits), 400, "INVALID_REQUEST")
    assert engine.requests == []


async def test_top_k_reaches_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    for value in (1, 40):
        assert (await sent(client, engine, top_k=value)).sampling == SamplingParams(top_k=value)


@pytest.mark.parametrize("value", [300, 10**9, 2**31, 2**63, 10**30])
async def test_top_k_beyond_the_vocabulary_keeps_every_token(
    client: httpx.AsyncClient, engine: FakeEngine, value: int
) -> None:
    top_k = (await sent(client, engine, top_k=value)).sampling.top_k
    assert top_k is None or top_k >= engine.model.vocab_size


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": None, "top_logprobs": None}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 0}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
        ({"top_logprobs": 1}, 1),
        ({"top_logprobs": 0}, None),
        ({"logprobs": False, "top_logprobs": 3}, 3),
    ],
    ids=json.dumps,
)
async def test_the_engine_computes_log_probabilities_only_on_request(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, object], expected: int | None
) -> None:
    assert (await sent(client, engine, **fields)).sampling == SamplingParams(top_logprobs=expected)


async def test_every_sampling_field_at_once_reaches_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    fields = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "frequency_penalty": -0.5,
        "presence_penalty": 1.5,
        "logit_bias": {"7": 1.5},
        "top_logprobs": 2,
    }
    expected = SamplingParams(**{**fields, "logit_bias": {7: 1.5}})
    assert (await sent(client, engine, logprobs=True, **fields)).sampling == expected


async def test_one_invalid_field_is_enough_to_refuse_a_request(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    payload = body(temperature=0.5, top_p=1.01, n=2, max_tokens=5)
    assert_error(await post(client, "/chat/completions", payload), 400, "INVALID_REQUEST", param="top_p")
    assert engine.requests == []

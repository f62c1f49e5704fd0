"""Fields that are not numbers: booleans, rejected, ignored and absent fields, and the query parameter."""

import json
from typing import Any

import httpx
import msgspec
import pytest

from inference.interface.requests import GenerationRequest
from tests.app.contract.support import CHAT, assert_error, body, chat, chat_with_literal, post, sent, stream
from tests.app.fakes import END_OF_TURN, FakeEngine

REJECTED = ("response_format", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")
IGNORED = ("seed", "service_tier", "user")
UNKNOWN = ("hosting", "tags", "store", "metadata", "reasoning_effort", "complete_unknown", "")
ANYTHING = [None, 0, -1, 1.5, True, "", "text", [], [1, [2]], {}, {"a": {"b": None}}]
OPTIONAL = [
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "maximum_tokens",
    "n",
    "presence_penalty",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "top_k",
    "top_logprobs",
    "steering_concepts",
    "steering_strength",
    "steering_scope",
    "steering_mode",
    "steering_when",
    "steering_readings",
]


def unnamed(request: GenerationRequest) -> GenerationRequest:
    return msgspec.structs.replace(request, request_id="")


@pytest.mark.parametrize("field", [*OPTIONAL, *REJECTED])
async def test_null_counts_as_absent(client: httpx.AsyncClient, engine: FakeEngine, field: str) -> None:
    plain = await sent(client, engine)
    assert unnamed(await sent(client, engine, **{field: None})) == unnamed(plain)


async def test_all_optional_fields_may_be_null_at_once(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    plain = await sent(client, engine)
    nulls = dict.fromkeys([*OPTIONAL, *REJECTED, *IGNORED])
    assert unnamed(await sent(client, engine, **nulls)) == unnamed(plain)


@pytest.mark.parametrize("value", ANYTHING, ids=json.dumps)
@pytest.mark.parametrize("field", [*IGNORED, *UNKNOWN])
async def test_an_ignored_field_changes_nothing_whatever_its_value(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, value: Any
) -> None:
    plain = await sent(client, engine)
    assert unnamed(await sent(client, engine, **{field: value})) == unnamed(plain)


@pytest.mark.parametrize("value", ANYTHING[1:], ids=json.dumps)
@pytest.mark.parametrize("field", REJECTED)
async def test_a_rejected_field_is_refused_as_unsupported(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, value: Any
) -> None:
    response = await chat(client, **{field: value})
    assert_error(response, 400, "INVALID_REQUEST", field, "unsupported", param=field)
    assert engine.requests == []


@pytest.mark.parametrize("literal", ["0", "1", '"true"', '"false"', '""', "[]", "{}", "1.0"])
@pytest.mark.parametrize("field", ["logprobs", "stream"])
async def test_only_true_and_false_are_booleans(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, literal: str
) -> None:
    assert_error(await chat_with_literal(client, field, literal), 400, "INVALID_REQUEST", field, param=field)
    assert engine.requests == []


async def test_stream_false_is_answered_with_one_json_object(client: httpx.AsyncClient) -> None:
    response = await chat(client, stream=False)
    assert response.json()["object"] == "chat.completion"


@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": False}], ids=json.dumps)
async def test_stream_options_have_no_effect_without_streaming(
    client: httpx.AsyncClient, options: dict[str, bool]
) -> None:
    plain, optioned = (await chat(client)).json(), (await chat(client, stream_options=options)).json()
    assert plain.keys() == optioned.keys()
    assert plain["usage"] == optioned["usage"]
    assert plain["choices"] == optioned["choices"]


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    "literal", ['"yes"', "true", "1", "[]", '{"include_usage": 1}', '{"include_usage": "true"}']
)
async def test_malformed_stream_options_are_refused(
    client: httpx.AsyncClient, literal: str, streamed: bool
) -> None:
    response = await chat_with_literal(client, "stream_options", literal, stream=streamed)
    error = assert_error(response, 400, "INVALID_REQUEST", "stream_options")
    assert error["param"].startswith("stream_options")


async def test_unknown_stream_options_are_ignored(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "include_obfuscation": False}
    assert (await stream(client, stream_options=options))[-1]["usage"] is not None


@pytest.mark.parametrize(("query", "nice"), [("", False), ("?nice=true", True), ("?nice=false", False)])
async def test_nice_reaches_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine, query: str, nice: bool
) -> None:
    assert (await post(client, CHAT + query, body())).status_code == 200
    assert engine.requests[0].nice is nice


@pytest.mark.parametrize("value", ["banana", "2", "tru", "null"])
async def test_a_nice_parameter_that_is_not_a_boolean_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, value: str
) -> None:
    response = await post(client, f"{CHAT}?nice={value}", body())
    assert_error(response, 400, "INVALID_REQUEST", "nice", value, param="nice")
    assert engine.requests == []


async def test_nice_in_the_body_is_not_the_query_parameter(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    assert (await sent(client, engine, nice=True)).nice is False


async def test_unknown_query_parameters_are_ignored(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    query = "?hosting=aleph-alpha&temperature=9&stream=true&nice=true&x"
    response = await post(client, CHAT + query, body())
    assert response.json()["object"] == "chat.completion"
    assert engine.requests[0].nice is True
    assert engine.requests[0].sampling.temperature == 1.0


async def test_every_request_has_its_own_id_in_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for _ in range(3):
        await sent(client, engine)
    assert len({request.request_id for request in engine.requests}) == 3


async def test_the_engine_gets_the_models_end_of_turn_tokens(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    request = await sent(client, engine)
    assert set(request.stop_token_ids) == {END_OF_TURN}

"""Errors are small, helpful and of one shape, whatever the input. Unknown routes are 404."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.app.contract.support import CHAT, assert_error, assistant, body, chat, post, user
from tests.app.fakes import FakeEngine

MEGABYTE = 2**20
HUGE = "x" * MEGABYTE
WIDE = "\u2028🙂" * (MEGABYTE // 8)
HUGE_REQUESTS: dict[str, tuple[dict[str, Any], int]] = {
    "model": (body(model=HUGE), 404),
    "role": (body(messages=[{"role": HUGE, "content": "a"}]), 400),
    "content as an array": (body(messages=[user([HUGE] * 3)]), 400),
    "content as an object": (body(messages=[user({HUGE: HUGE})]), 400),
    "part type": (body(messages=[user([{"type": HUGE, "text": "a"}])]), 400),
    "text": (body(messages=[user([{"type": "text", "text": [HUGE]}])]), 400),
    "messages as a string": (body(messages=HUGE), 400),
    "many messages": (body(messages=[user("a")] * 50_000), 400),
    "many bad messages": (body(messages=[{}] * 50_000), 400),
    "temperature": (body(temperature=HUGE), 400),
    "max_tokens": (body(max_tokens=HUGE), 400),
    "stream": (body(stream=HUGE), 400),
    "stop": (body(stop=HUGE), 400),
    "many stops": (body(stop=["a"] * 100_000), 400),
    "bad stops": (body(stop=[{HUGE: 1}]), 400),
    "logit_bias": (body(logit_bias=HUGE), 400),
    "bias key": (body(logit_bias={HUGE: 1}), 400),
    "bias value": (body(logit_bias={"1": HUGE}), 400),
    "bias key and value": (body(logit_bias={HUGE: HUGE}), 400),
    "many bad biases": (body(logit_bias={f"k{number}": "v" for number in range(50_000)}), 400),
    "concept": (body(steering_concepts=[HUGE]), 400),
    "many bad concepts": (body(steering_concepts=["a b"] * 50_000), 400),
    "stream_options": (body(stream_options={"include_usage": HUGE}), 400),
    "tools": (body(tools=[{HUGE: HUGE}]), 400),
    "wide model": (body(model=WIDE), 404),
    "wide role": (body(messages=[{"role": WIDE, "content": "a"}]), 400),
    "wide bias key": (body(logit_bias={WIDE: WIDE}), 400),
    "control characters": (body(model="\x00\x1f\x7f" * 100_000), 404),
    "control characters as a key": (body(logit_bias={"\x01" * 500_000: 1}), 400),
    "quotes": (body(logit_bias={'"\\' * 500_000: '"\\' * 500_000}), 400),
}


@pytest.mark.parametrize(("payload", "status"), list(HUGE_REQUESTS.values()), ids=list(HUGE_REQUESTS))
async def test_an_error_is_small_whatever_the_input(
    client: httpx.AsyncClient, engine: FakeEngine, payload: dict[str, Any], status: int
) -> None:
    code = {400: "INVALID_REQUEST", 404: "UNKNOWN_MODEL"}[status]
    assert_error(await post(client, CHAT, payload), status, code)
    assert engine.requests == []


async def test_a_huge_unknown_field_is_ignored(client: httpx.AsyncClient) -> None:
    assert (await chat(client, **{HUGE: HUGE})).status_code == 200


async def test_an_error_is_small_despite_a_huge_unknown_field_in_a_message(
    client: httpx.AsyncClient,
) -> None:
    assert_error(await chat(client, messages=[{HUGE: HUGE}]), 400, "INVALID_REQUEST")


async def test_a_number_with_a_million_digits_gets_a_small_error(client: httpx.AsyncClient) -> None:
    for literal in ("9" * MEGABYTE, "0." + "3" * MEGABYTE + "e9", "-" + "9" * MEGABYTE):
        raw = json.dumps(body(top_logprobs=0)).replace('"top_logprobs": 0', f'"top_logprobs": {literal}')
        response = await client.post(CHAT, content=raw, headers={"content-type": "application/json"})
        assert_error(response, 400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 3},
        {"model": "unknown"},
        {"model": 5},
        {"messages": [assistant("a")]},
        {"tools": []},
        {"max_tokens": 10**6},
        {"n": 10**6},
        {"logit_bias": {"a": 1}},
        {"stop": ""},
        {"steering_concepts": ["a b"]},
    ],
    ids=json.dumps,
)
async def test_a_streamed_request_gets_the_same_error_as_an_unstreamed_one(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    plain, streamed = await chat(client, **fields), await chat(client, stream=True, **fields)
    assert (streamed.status_code, streamed.json()) == (plain.status_code, plain.json())
    assert plain.status_code in (400, 404)
    assert engine.requests == []


async def test_the_contracts_example(client: httpx.AsyncClient) -> None:
    error = assert_error(await chat(client, temperature=3), 400, "INVALID_REQUEST", param="temperature")
    assert error["type"] == "invalid_request_error"
    for word in ("temperature", "2", "3"):
        assert word in error["message"]


@pytest.mark.parametrize("model", ["unknown", "", "Tiny", "tiny ", "TINY", "../tiny"])
async def test_an_unknown_model_is_not_found(
    client: httpx.AsyncClient, engine: FakeEngine, model: str
) -> None:
    assert_error(await chat(client, model=model), 404, "UNKNOWN_MODEL", model, param="model")
    assert engine.requests == []


@pytest.mark.parametrize("model", [None, 5, 1.5, True, [], ["tiny"], {"id": "tiny"}], ids=json.dumps)
async def test_a_model_that_is_not_a_string_is_refused(client: httpx.AsyncClient, model: Any) -> None:
    assert_error(await chat(client, model=model), 400, "INVALID_REQUEST", "model", param="model")


async def test_the_model_is_required(client: httpx.AsyncClient) -> None:
    payload = {"messages": [user("a")]}
    assert_error(await post(client, CHAT, payload), 400, "INVALID_REQUEST", "model", param="model")


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_model_without_a_chat_template_cannot_chat(
    serve, templateless: FakeEngine, streamed: bool
) -> None:
    client = await serve(templateless)
    assert_error(await chat(client, stream=streamed), 400, "MISSING_CAPABILITY", "tiny")
    assert templateless.requests == []


@pytest.mark.parametrize(
    "path",
    [
        "/responses",
        "/complete",
        "/completions",
        "/embeddings",
        "/chat",
        "/chat/completions/",
        "/chat/completions/x",
        "/v1/v1/chat/completions",
        "/api/chat",
        "/a/b/c/",
    ],
)
async def test_an_unknown_route_says_what_there_is(client: httpx.AsyncClient, path: str) -> None:
    for target in (path, f"/v1{path}"):
        for response in (await client.get(target), await post(client, target, body())):
            error = assert_error(response, 404, "NOT_FOUND")
            assert error["message"] == f"{target} does not exist; this server chats: POST /chat/completions"
            assert error["param"] is None


@pytest.mark.parametrize("target", ["//v1/chat/completions", "/v1//chat/completions"])
async def test_two_slashes_make_another_route(client: httpx.AsyncClient, target: str) -> None:
    response = await client.post(f"http://tiller{target}", json=body())
    assert_error(response, 404, "NOT_FOUND", f"{target} does not exist; this server chats: ")


async def test_an_unknown_route_is_answered_before_the_body_arrives(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        pytest.fail("the body was read")

    assert_error(await client.post("/v1/responses", content=endless()), 404, "NOT_FOUND")


@pytest.mark.parametrize("host", ["[", "[::1", "a b", "", "ho/st", "x:99999999", "\x00", "%5b"])
async def test_an_invalid_host_header_changes_nothing(client: httpx.AsyncClient, host: str) -> None:
    headers = {"host": host}
    assert_error(await client.get("/nowhere", headers=headers), 404, "NOT_FOUND")
    assert_error(await client.get(CHAT, headers=headers), 405, "METHOD_NOT_ALLOWED")
    assert (await client.get("/models", headers=headers)).status_code == 200
    response = await client.post(CHAT, json=body(), headers=headers)
    assert response.status_code == 200


async def test_a_huge_path_is_not_found(client: httpx.AsyncClient) -> None:
    assert_error(await client.get("/" + "ä" * 10_000), 404, "NOT_FOUND")


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", CHAT),
        ("PUT", CHAT),
        ("DELETE", CHAT),
        ("PATCH", CHAT),
        ("GET", "/tokenize"),
        ("GET", "/detokenize"),
        ("POST", "/models"),
        ("POST", "/version"),
        ("POST", "/health"),
        ("DELETE", "/models/tiny"),
        ("POST", "/models_available"),
        ("POST", "/model-settings"),
    ],
)
async def test_another_method_is_not_allowed(
    client: httpx.AsyncClient, prefix: str, method: str, path: str
) -> None:
    response = await client.request(method, prefix + path)
    assert_error(response, 405, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"]


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_chat_is_served_under_both_prefixes(
    client: httpx.AsyncClient, engine: FakeEngine, prefix: str
) -> None:
    response = await post(client, prefix + CHAT, body())
    assert response.json()["object"] == "chat.completion"
    response = await post(client, prefix + CHAT, body(stream=True))
    assert response.content.endswith(b"data: [DONE]\n\n")
    assert len(engine.requests) == 2


async def test_a_huge_query_gets_a_small_error(client: httpx.AsyncClient) -> None:
    response = await post(client, f"{CHAT}?nice={'y' * 30_000}", body())
    assert_error(response, 400, "INVALID_REQUEST", param="nice")

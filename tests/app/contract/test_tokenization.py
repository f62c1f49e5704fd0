"""The routes /tokenize and /detokenize."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from tests.app.contract.support import assert_error, post
from tests.app.fakes import FakeEngine, model_info, write_model_directory

prefixes = pytest.mark.parametrize("prefix", ["", "/v1"])
BOTH = {"model": "tiny", "tokens": True, "token_ids": True}


async def tokenize(client: httpx.AsyncClient, prompt: str, **fields: Any) -> dict[str, Any]:
    response = await post(client, "/tokenize", {**BOTH, "prompt": prompt, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def detokenize(client: httpx.AsyncClient, token_ids: list[int]) -> str:
    response = await post(client, "/detokenize", {"model": "tiny", "token_ids": token_ids})
    assert response.status_code == 200, response.text
    assert response.json().keys() == {"result"}
    return response.json()["result"]


@prefixes
async def test_tokens_and_ids_come_from_the_models_tokenizer(
    client: httpx.AsyncClient, tiny_tokenizer: Tokenizer, prefix: str
) -> None:
    response = await post(client, f"{prefix}/tokenize", {**BOTH, "prompt": "Hello, world"})
    expected = tiny_tokenizer.encode("Hello, world")
    assert response.status_code == 200
    assert response.json() == {"tokens": expected.tokens, "token_ids": expected.ids}


@pytest.mark.parametrize(
    ("requested", "given"),
    [
        ({"tokens": True, "token_ids": True}, ["token_ids", "tokens"]),
        ({"tokens": True, "token_ids": False}, ["tokens"]),
        ({"tokens": False, "token_ids": True}, ["token_ids"]),
        ({"tokens": False, "token_ids": False}, []),
    ],
    ids=repr,
)
async def test_tokens_and_ids_are_returned_only_if_requested(
    client: httpx.AsyncClient, requested: dict[str, bool], given: list[str]
) -> None:
    answer = await tokenize(client, "Hello", **requested)
    assert sorted(name for name, value in answer.items() if value is not None) == given


async def test_no_special_tokens_are_added(serve, tmp_path: Path) -> None:
    tokenizer = write_model_directory(tmp_path)
    tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("Hello").ids[0] == 1
    client = await serve(FakeEngine(model_info(tmp_path, tokenizer.get_vocab_size())))
    answer = await tokenize(client, "Hello")
    assert answer["token_ids"] == tokenizer.encode("Hello", add_special_tokens=False).ids


async def test_an_empty_prompt_has_no_tokens(client: httpx.AsyncClient) -> None:
    assert await tokenize(client, "") == {"tokens": [], "token_ids": []}


async def test_tokenize_works_for_a_model_without_a_chat_template(serve, templateless: FakeEngine) -> None:
    client = await serve(templateless)
    assert await detokenize(client, (await tokenize(client, "Hello"))["token_ids"]) == "Hello"


@prefixes
async def test_detokenize_gives_the_text(
    client: httpx.AsyncClient, tiny_tokenizer: Tokenizer, prefix: str
) -> None:
    ids = tiny_tokenizer.encode("Hello, wörld").ids
    response = await post(client, f"{prefix}/detokenize", {"model": "tiny", "token_ids": ids})
    assert response.json() == {"result": "Hello, wörld"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
async def test_any_text_survives_tokenize_and_detokenize(client: httpx.AsyncClient, text: str) -> None:
    assert await detokenize(client, (await tokenize(client, text))["token_ids"]) == text


async def test_no_tokens_detokenize_to_the_empty_text(client: httpx.AsyncClient) -> None:
    assert await detokenize(client, []) == ""


async def test_part_of_a_character_can_be_detokenized(client: httpx.AsyncClient, byte_ids: list[int]) -> None:
    result = await detokenize(client, [byte_ids[ord("a")], byte_ids[0xE6]])
    assert result.startswith("a")


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    payload = (
        {**BOTH, "model": "unknown", "prompt": "a"}
        if path == "/tokenize"
        else {"model": "unknown", "token_ids": []}
    )
    assert_error(await post(client, path, payload), 404, "UNKNOWN_MODEL", "unknown")


@pytest.mark.parametrize("value", [None, 5, True, [], ["a"], {}], ids=json.dumps)
async def test_a_prompt_that_is_not_a_string_is_refused(client: httpx.AsyncClient, value: Any) -> None:
    response = await post(client, "/tokenize", {**BOTH, "prompt": value})
    assert_error(response, 400, "INVALID_REQUEST", "prompt", param="prompt")


@pytest.mark.parametrize("value", ["true", 1, 0, [], {}, 1.0], ids=json.dumps)
@pytest.mark.parametrize("field", ["tokens", "token_ids"])
async def test_a_switch_that_is_not_a_boolean_is_refused(
    client: httpx.AsyncClient, field: str, value: Any
) -> None:
    response = await post(client, "/tokenize", {**BOTH, "prompt": "a", field: value})
    assert_error(response, 400, "INVALID_REQUEST", field, param=field)


@pytest.mark.parametrize(
    "value",
    [None, "1", 1, {}, True, [-1], [1.5], [1.0], ["1"], [True], [None], [[1]], [10**30], [259_000]],
    ids=json.dumps,
)
async def test_invalid_token_ids_are_refused(client: httpx.AsyncClient, value: Any) -> None:
    response = await post(client, "/detokenize", {"model": "tiny", "token_ids": value})
    error = assert_error(response, 400, "INVALID_REQUEST", "token_ids")
    assert error["param"].startswith("token_ids")


async def test_the_first_id_outside_the_vocabulary_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    last = engine.model.vocab_size - 1
    await detokenize(client, [last])
    response = await post(client, "/detokenize", {"model": "tiny", "token_ids": [last + 1]})
    assert_error(response, 400, "INVALID_REQUEST", str(last + 1))


@pytest.mark.parametrize(
    ("path", "missing"),
    [("/tokenize", "model"), ("/tokenize", "prompt"), ("/detokenize", "model"), ("/detokenize", "token_ids")],
)
async def test_required_fields_are_required(client: httpx.AsyncClient, path: str, missing: str) -> None:
    payload: dict[str, Any] = {**BOTH, "prompt": "a"}
    if path == "/detokenize":
        payload = {"model": "tiny", "token_ids": []}
    del payload[missing]
    assert_error(await post(client, path, payload), 400, "INVALID_REQUEST", missing, param=missing)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_unknown_fields_are_ignored(client: httpx.AsyncClient, path: str) -> None:
    payload = {**BOTH, "prompt": "a"} if path == "/tokenize" else {"model": "tiny", "token_ids": []}
    response = await post(client, path, {**payload, "hosting": "aleph-alpha", "tags": ["x"]})
    assert response.status_code == 200


async def test_huge_inputs_get_a_small_error(client: httpx.AsyncClient) -> None:
    huge = "x" * 2**20
    assert_error(await post(client, "/tokenize", {**BOTH, "prompt": {huge: huge}}), 400, "INVALID_REQUEST")
    response = await post(client, "/detokenize", {"model": "tiny", "token_ids": [huge] * 3})
    assert_error(response, 400, "INVALID_REQUEST")

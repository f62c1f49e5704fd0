"""The routes that describe the model, for OpenAI's clients and for Aleph Alpha's."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from tests.app.contract.support import assert_error
from tests.app.fakes import CONTEXT_LENGTH, FakeEngine

AVAILABLE = {
    "name": str,
    "description": str,
    "max_context_size": int,
    "hostings": list,
    "image_support": bool,
    "qa_support": bool,
    "summarization_support": bool,
    "embedding_types": list,
    "maximum_completion_tokens": int,
    "aligned": bool,
}
SETTINGS = [
    "name",
    "status",
    "description",
    "multimodal",
    "max_context_size",
    "semantic_embedding",
    "completion_type",
    "embedding_type",
    "aligned",
    "chat",
    "prompt_template",
    "maximum_completion_tokens",
    "worker_type",
]
BOOLEANS = ("multimodal", "semantic_embedding", "aligned", "chat")

prefixes = pytest.mark.parametrize("prefix", ["", "/v1"])


async def got(client: httpx.AsyncClient, path: str) -> Any:
    response = await client.get(path)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/json")
    return response.json()


@prefixes
async def test_models_are_openais_list(client: httpx.AsyncClient, prefix: str) -> None:
    answer = await got(client, f"{prefix}/models")
    assert answer.keys() == {"object", "data"}
    assert answer["object"] == "list"
    (model,) = answer["data"]
    assert model.keys() == {"id", "object", "created", "owned_by"}
    assert (model["id"], model["object"]) == ("tiny", "model")
    assert type(model["created"]) is int
    assert model["created"] > 0
    assert isinstance(model["owned_by"], str)


@prefixes
async def test_one_model_is_as_in_the_list_and_has_its_end_tokens(
    client: httpx.AsyncClient, prefix: str
) -> None:
    (listed,) = (await got(client, f"{prefix}/models"))["data"]
    sources = ["config.json", "tokenizer", "chat template"]
    end_tokens = [{"id": 2, "token": "<|im_end|>", "sources": sources}]
    assert await got(client, f"{prefix}/models/tiny") == {**listed, "end_tokens": end_tokens}


@prefixes
@pytest.mark.parametrize(
    "path", ["/models/unknown", "/models/unknown/tokenizer", "/models/Tiny", "/models/a/b"]
)
async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient, prefix: str, path: str) -> None:
    assert_error(await client.get(prefix + path), 404, "UNKNOWN_MODEL")


async def test_a_huge_unknown_model_gets_a_small_404(client: httpx.AsyncClient) -> None:
    assert_error(await client.get("/models/" + "ü" * 10_000), 404, "UNKNOWN_MODEL")


@prefixes
async def test_the_tokenizer_is_the_raw_file(
    client: httpx.AsyncClient, model_directory: Path, tiny_tokenizer: Tokenizer, prefix: str
) -> None:
    response = await client.get(f"{prefix}/models/tiny/tokenizer")
    assert response.content == (model_directory / "tokenizer.json").read_bytes()
    assert Tokenizer.from_str(response.text).encode("Hello").ids == tiny_tokenizer.encode("Hello").ids


@prefixes
@pytest.mark.parametrize("path", ["org/tiny", "org%2Ftiny"])
async def test_a_models_name_may_contain_a_slash(serve, prefix: str, path: str) -> None:
    client = await serve(model={"name": "org/tiny"})
    assert (await got(client, f"{prefix}/models/{path}"))["id"] == "org/tiny"
    assert (await client.get(f"{prefix}/models/{path}/tokenizer")).json()["model"]["type"] == "BPE"


@prefixes
async def test_models_available_is_a_bare_list(client: httpx.AsyncClient, prefix: str) -> None:
    (model,) = await got(client, f"{prefix}/models_available")
    assert model.keys() == AVAILABLE.keys()
    assert {name: type(value) for name, value in model.items()} == AVAILABLE
    assert model["name"] == "tiny"
    assert model["max_context_size"] == CONTEXT_LENGTH
    assert 0 < model["maximum_completion_tokens"] <= CONTEXT_LENGTH


async def test_models_available_claims_no_missing_feature(client: httpx.AsyncClient) -> None:
    (model,) = await got(client, "/models_available")
    assert [model[name] for name in ("image_support", "qa_support", "summarization_support")] == [False] * 3
    assert model["embedding_types"] == []


@prefixes
async def test_model_settings_is_a_bare_list(client: httpx.AsyncClient, prefix: str) -> None:
    (model,) = await got(client, f"{prefix}/model-settings")
    assert model.keys() == set(SETTINGS)
    assert (model["name"], model["max_context_size"]) == ("tiny", CONTEXT_LENGTH)
    assert {type(model[name]) for name in BOOLEANS} == {bool}
    assert all(isinstance(model[name], str) for name in ("status", "description", "worker_type"))
    assert 0 < model["maximum_completion_tokens"] <= CONTEXT_LENGTH


async def test_model_settings_say_what_the_model_can_do(
    client: httpx.AsyncClient, serve, templateless: FakeEngine
) -> None:
    (chatting,) = await got(client, "/model-settings")
    (silent,) = await got(await serve(templateless), "/model-settings")
    assert (chatting["chat"], silent["chat"]) == (True, False)
    assert (chatting["multimodal"], chatting["semantic_embedding"]) == (False, False)


async def test_the_configured_description_is_shown(serve) -> None:
    client = await serve(model={"name": "tiny", "description": "A small one"})
    for path in ("/models_available", "/model-settings"):
        assert (await got(client, path))[0]["description"] == "A small one"


async def test_created_does_not_change(client: httpx.AsyncClient) -> None:
    assert await got(client, "/models") == await got(client, "/v1/models")

"""A server with several models: each request finds its own, and each model has its own truth."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from msgspec.structs import replace
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from app.cli import build_commands
from app.main import create_app
from app.settings import AccessToken, Settings
from tests.app.contract.conftest import client_of, live
from tests.app.contract.support import CHAT, body, chat, post
from tests.app.fakes import FakeEngine, model_info, reply, write_model_directory

NAMES = ("llama-3.1-8b-instruct", "luminous-base", "luminous-late")
CHATS, COMPLETES, LATE = NAMES
EXAMPLES = [{"positive": "Arr!", "negative": "Hello."}]


def with_one_more_token(directory: Path) -> int:
    """Writes a model directory without a chat template. Its tokenizer has one more token: returns its id."""
    write_model_directory(directory, chat_template=None)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_tokens(["☃"])
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer.get_vocab_size() - 1


@pytest.fixture
def engines(tmp_path: Path) -> dict[str, FakeEngine]:
    """Those of the models that are loaded: all but LATE."""
    for name in NAMES[:2]:
        (tmp_path / name).mkdir()
    size = write_model_directory(tmp_path / CHATS).get_vocab_size()
    last = with_one_more_token(tmp_path / COMPLETES)
    other = replace(model_info(tmp_path / COMPLETES, last + 1), context_length=64, weights_digest="0a" * 32)
    return {
        CHATS: FakeEngine(model_info(tmp_path / CHATS, size), reply([40])),
        COMPLETES: FakeEngine(other, reply([41])),
    }


@pytest.fixture
def engine(engines: dict[str, FakeEngine]) -> FakeEngine:
    return engines[CHATS]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    described = [{"name": name, "source": "embedded", "description": f"This is {name}."} for name in NAMES]
    return Settings(models=described, data_directory=str(tmp_path / "data"))


@pytest.fixture
def app(settings: Settings, engines: dict[str, FakeEngine]) -> FastAPI:
    return create_app(settings, engines)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


async def test_a_chat_goes_to_its_model(client: httpx.AsyncClient, engines: dict[str, FakeEngine]) -> None:
    answer = (await chat(client, model=CHATS)).json()
    assert answer["model"] == CHATS
    assert (len(engines[CHATS].requests), len(engines[COMPLETES].requests)) == (1, 0)


@pytest.mark.parametrize(
    ("model", "status", "code", "words"),
    [
        (COMPLETES, 400, "MISSING_CAPABILITY", "luminous-base cannot chat"),
        (LATE, 503, "UNAVAILABLE", "luminous-late is not loaded"),
        ("gpt-4", 404, "UNKNOWN_MODEL", "GET /models lists the models"),
        ("", 404, "UNKNOWN_MODEL", "model"),
    ],
)
async def test_a_chat_with_another_model_is_refused(
    client: httpx.AsyncClient, model: str, status: int, code: str, words: str
) -> None:
    answer = await chat(client, model=model)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert words in answer.json()["error"]["message"]
    assert (await chat(client, model=CHATS)).status_code == 200


async def test_a_model_that_is_down_does_not_concern_the_others(
    client: httpx.AsyncClient, engines: dict[str, FakeEngine]
) -> None:
    engines[CHATS].available = False
    answer = await chat(client, model=CHATS)
    assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE")
    assert "retry-after" in answer.headers
    assert (await client.get("/health")).status_code == 200
    statuses = {model["name"]: model["status"] for model in (await client.get("/model-settings")).json()}
    assert statuses == {CHATS: "unavailable", COMPLETES: "available"}
    engines[COMPLETES].available = False
    assert (await client.get("/health")).status_code == 503


async def test_a_full_model_does_not_concern_the_others(
    client: httpx.AsyncClient, engines: dict[str, FakeEngine]
) -> None:
    engines[COMPLETES].free_capacity = 0
    assert (await chat(client, model=CHATS)).status_code == 200
    engines[CHATS].free_capacity, engines[COMPLETES].free_capacity = 0, 10
    answer = await chat(client, model=CHATS)
    assert (answer.status_code, answer.json()["code"]) == (503, "QUEUE_FULL")


async def test_the_lists_have_the_truth_about_each_loaded_model(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/models")).json()["data"]
    assert [model["id"] for model in listed] == [CHATS, COMPLETES]
    available = (await client.get("/models_available")).json()
    facts = [(model["name"], model["max_context_size"], model["aligned"]) for model in available]
    assert facts == [(CHATS, 256, True), (COMPLETES, 64, False)]
    assert [model["description"] for model in available] == [f"This is {name}." for name in NAMES[:2]]
    settings = (await client.get("/model-settings")).json()
    facts = [(model["name"], model["maximum_completion_tokens"], model["chat"]) for model in settings]
    assert facts == [(CHATS, 256, True), (COMPLETES, 64, False)]
    assert (await client.get(f"/models/{COMPLETES}")).json()["id"] == COMPLETES
    assert (await client.get(f"/models/{LATE}")).status_code == 503


async def test_each_model_has_its_own_tokenizer(client: httpx.AsyncClient, tmp_path: Path) -> None:
    last = Tokenizer.from_file(str(tmp_path / COMPLETES / "tokenizer.json")).get_vocab_size() - 1
    wanted = {"prompt": "☃", "tokens": False, "token_ids": True}
    found = [
        (await post(client, "/tokenize", {**wanted, "model": name})).json()["token_ids"] for name in NAMES[:2]
    ]
    assert found[1] == [last]
    assert len(found[0]) == 3, "bytes"
    known = await post(client, "/detokenize", {"model": COMPLETES, "token_ids": [last]})
    assert known.json() == {"result": "☃"}
    assert (await post(client, "/detokenize", {"model": CHATS, "token_ids": [last]})).status_code == 400
    files = [(await client.get(f"/models/{name}/tokenizer")).content for name in NAMES[:2]]
    assert files == [(tmp_path / name / "tokenizer.json").read_bytes() for name in NAMES[:2]]


async def create(client: httpx.AsyncClient, name: str = "pirate", **fields: Any) -> httpx.Response:
    return await post(client, "/steering_concepts", {"name": name, "examples": EXAMPLES, **fields})


async def test_a_concept_is_created_for_all_models_and_reported_for_each(client: httpx.AsyncClient) -> None:
    """Only one of them can be steered, because the other has no chat template."""
    answer = await create(client)
    assert answer.status_code == 201, answer.text
    models = answer.json()["models"]
    assert (models[CHATS]["state"], models[COMPLETES]["state"]) == ("ready", "failed")
    assert answer.json()["report"] == models[CHATS]["report"]
    assert "chat template" in models[COMPLETES]["error"]
    described = (await client.get("/steering_concepts/pirate")).json()
    assert described["models"] == models
    [card] = (await client.get("/steering_concepts")).json()["data"]
    assert card["models"][COMPLETES]["state"] == "failed"
    assert "report" not in card["models"][CHATS]


async def test_a_query_chooses_one_model(client: httpx.AsyncClient) -> None:
    await create(client, model=CHATS)
    for path in ("/steering_concepts/pirate", "/steering_concepts"):
        answer = (await client.get(path, params={"model": COMPLETES})).json()
        concept = answer["data"][0] if "data" in answer else answer
        assert (concept["state"], "models" in concept) == ("untrained", False)
        unknown = await client.get(path, params={"model": "gpt-4"})
        assert (unknown.status_code, unknown.json()["code"]) == (404, "UNKNOWN_MODEL")
    assert (await client.get("/steering_concepts/pirate", params={"model": CHATS})).json()["state"] == "ready"


async def test_a_concept_that_no_model_can_use_is_not_created(client: httpx.AsyncClient) -> None:
    answer = await create(client, model=COMPLETES)
    assert (answer.status_code, answer.json()["code"]) == (400, "MISSING_CAPABILITY")
    assert (await client.get("/steering_concepts")).json()["data"] == []


async def test_a_concept_waits_for_a_model_that_is_not_loaded(
    settings: Settings, engines: dict[str, FakeEngine]
) -> None:
    """The only loaded model cannot be steered. Perhaps the others can, so that is no fault of the request."""
    app = create_app(settings, {COMPLETES: engines[COMPLETES]})
    async with client_of(app) as client:
        answer = await create(client)
        assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE")
        assert CHATS in answer.json()["error"]["message"]
        refused = await create(client, model=COMPLETES)
        assert (refused.status_code, refused.json()["code"]) == (400, "MISSING_CAPABILITY")
        assert (await client.get("/steering_concepts")).json()["data"] == []


async def test_vectors_are_exported_and_imported_for_the_model_that_they_fit(
    client: httpx.AsyncClient, engines: dict[str, FakeEngine]
) -> None:
    await create(client, model=CHATS)
    file = (await client.get("/steering_concepts/pirate/vectors", params={"model": CHATS})).content
    assert b"5f" * 32 in file
    path, kind = "/steering_concepts/import", {"content-type": "application/octet-stream"}
    answer = await client.post(path, params={"name": "given"}, content=file, headers=kind)
    assert answer.status_code == 201, answer.text
    assert len(engines[CHATS].trainings) == 2
    refused = await client.post(path, params={"name": "x", "model": COMPLETES}, content=file, headers=kind)
    assert refused.status_code == 400
    used = await chat(client, model=CHATS, steering_concepts=["given"])
    assert used.status_code == 200


async def tiller_concept(url: str, *words: str) -> Result:
    """Runs `tiller concept ...` on another thread, because the server runs in this one."""
    runner = CliRunner(env={"TILLER_URL": url, "COLUMNS": "200"})
    return await asyncio.to_thread(runner.invoke, build_commands(), ["concept", *words])


async def test_the_command_line_shows_all_models_or_one(app: FastAPI, tmp_path: Path) -> None:
    file, vectors = tmp_path / "pirate.yaml", tmp_path / "pirate.safetensors"
    file.write_text(json.dumps({"name": "pirate", "examples": EXAMPLES}))
    async with live(app) as url:
        refused = await tiller_concept(url, "train", str(file), "--model", COMPLETES)
        assert (refused.exit_code, "chat template" in refused.stderr) == (1, True)
        made = await tiller_concept(url, "train", str(file))
        assert made.stdout.startswith(f"_worker/pirate: ready on {CHATS}, failed on {COMPLETES}, examples: 1")
        assert f"\n{COMPLETES}: failed\nFailed: " in made.stdout
        assert made.stdout.count("Specificity") == 1
        assert f"ready on {CHATS}" in (await tiller_concept(url, "list")).stdout
        one = await tiller_concept(url, "show", "pirate", "--model", CHATS)
        assert one.stdout.startswith("_worker/pirate: ready, examples: 1\n")
        listed = (await tiller_concept(url, "list", "--model", COMPLETES)).stdout
        assert ("failed" in listed, " on " in listed) == (True, False)
        assert (await tiller_concept(url, "export", "pirate", str(vectors), "--model", CHATS)).exit_code == 0
        other = await tiller_concept(url, "import", str(vectors), "--name", "x", "--model", COMPLETES)
        assert (other.exit_code, other.stderr.count("\n")) == (1, 1)
        assert (
            await tiller_concept(url, "import", str(vectors), "--name", "x", "--model", CHATS)
        ).exit_code == 0


async def test_texts_are_read_with_the_model_that_the_request_names(
    client: httpx.AsyncClient, engines: dict[str, FakeEngine]
) -> None:
    await create(client, model=CHATS)
    path = "/steering_concepts/pirate/read"
    assert (await post(client, path, {"texts": ["Ahoy"], "model": CHATS})).status_code == 200
    assert len(engines[CHATS].reads) == 1
    assert (await post(client, path, {"texts": ["Ahoy"], "model": COMPLETES})).status_code == 400
    assert (await post(client, path, {"texts": ["Ahoy"], "model": LATE})).status_code == 503


async def test_metrics_name_the_model(client: httpx.AsyncClient) -> None:
    await chat(client, model=CHATS)
    lines = (await client.get("/metrics")).text.splitlines()
    assert f'tiller_completion_tokens_total{{model="{CHATS}"}} 1.0' in lines
    assert f'tiller_completion_tokens_total{{model="{COMPLETES}"}} 0.0' in lines
    up = {line.rpartition(" ")[0]: line[-3:] for line in lines if line.startswith("tiller_worker_up")}
    assert up == {
        f'tiller_worker_up{{model="{name}",worker="0"}}': "0.0" if name == LATE else "1.0" for name in NAMES
    }
    assert sum(line.startswith("tiller_info{") for line in lines) == 2


async def test_the_fingerprints_differ(app: FastAPI) -> None:
    assert len({model.system_fingerprint for model in app.state.gateway.models.loaded}) == 2


async def test_a_model_that_is_loaded_later_is_served(
    app: FastAPI, client: httpx.AsyncClient, settings: Settings, engines: dict[str, FakeEngine]
) -> None:
    assert "luminous-late" not in (await client.get("/openapi.json")).text
    gateway = app.state.gateway
    gateway.add(gateway.load(settings.served_models[2], FakeEngine(engines[CHATS].model, reply([42]))))
    assert (await chat(client, model=LATE)).json()["model"] == LATE
    assert [model["id"] for model in (await client.get("/models")).json()["data"]] == list(NAMES)
    assert "luminous-late" in (await client.get("/openapi.json")).text


class TestAccessTokensForSomeModels:
    """`models` of an access token: all other models are unknown to it."""

    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        def token(secret: str, **fields: Any) -> dict[str, Any]:
            return {"name": secret, "sha256": hashlib.sha256(secret.encode()).hexdigest(), **fields}

        tokens = [token("some", models=[CHATS], tokens_per_minute=100), token("none", models=["gone"])]
        return Settings(
            models=[{"name": name, "source": "embedded"} for name in NAMES],
            data_directory=str(tmp_path / "data"),
            auth={"tokens": [*tokens, token("all", tokens_per_minute=100)]},
        )

    async def ask(self, client: httpx.AsyncClient, token: str, path: str, **fields: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"}
        if not fields:
            return await client.get(path, headers=headers)
        return await client.post(path, json=fields, headers=headers)

    async def test_other_models_are_unknown(self, client: httpx.AsyncClient) -> None:
        assert (await self.ask(client, "some", CHAT, **body(model=CHATS, max_tokens=1))).status_code == 200
        refused = await self.ask(client, "some", CHAT, **body(model=COMPLETES))
        unknown = await self.ask(client, "some", CHAT, **body(model="luminous-bass"))
        assert refused.status_code == unknown.status_code == 404
        assert refused.text.replace("base", "bass") == unknown.text, "a caller cannot tell them apart"
        for path in (f"/models/{COMPLETES}", f"/models/{COMPLETES}/tokenizer"):
            assert (await self.ask(client, "some", path)).status_code == 404
        wanted = {"model": COMPLETES, "prompt": "a", "tokens": True, "token_ids": True}
        assert (await self.ask(client, "some", "/tokenize", **wanted)).status_code == 404

    async def test_lists_leave_them_out(self, client: httpx.AsyncClient) -> None:
        for token, names in (("some", [CHATS]), ("all", list(NAMES[:2])), ("none", [])):
            answer = await self.ask(client, token, "/models")
            assert [model["id"] for model in answer.json()["data"]] == names
            for path in ("/models_available", "/model-settings"):
                assert [model["name"] for model in (await self.ask(client, token, path)).json()] == names

    async def test_concepts_are_made_and_shown_for_the_permitted_models(
        self, client: httpx.AsyncClient, engines: dict[str, FakeEngine]
    ) -> None:
        made = await self.ask(client, "some", "/steering_concepts", name="x", examples=EXAMPLES)
        assert made.status_code == 201
        assert "models" not in made.json()
        assert engines[COMPLETES].trainings == []
        shown = await self.ask(client, "some", f"/steering_concepts/x?model={COMPLETES}")
        assert shown.status_code == 404

    async def test_the_tokens_of_all_models_count_together(
        self, client: httpx.AsyncClient, app: FastAPI, engines: dict[str, FakeEngine], settings: Settings
    ) -> None:
        gateway = app.state.gateway
        gateway.add(gateway.load(settings.served_models[2], FakeEngine(engines[CHATS].model, reply([42]))))
        for engine in gateway.models.engines:
            engine.start = asyncio.get_running_loop().create_future()
        first = asyncio.create_task(self.ask(client, "all", CHAT, **body(model=CHATS, max_tokens=60)))
        await asyncio.sleep(0.05)
        second = await self.ask(client, "all", CHAT, **body(model=LATE, max_tokens=60))
        assert (second.status_code, second.json()["code"]) == (429, "RATE_LIMITED")
        gateway.models.engines[0].start.set_result(None)
        assert (await first).status_code == 200


def test_an_access_token_names_at_least_one_model() -> None:
    with pytest.raises(ValueError, match="models"):
        AccessToken(name="a", sha256="0" * 64, models=())

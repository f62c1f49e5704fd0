"""GET /steering_concepts/{id}/vectors and POST /steering_concepts/import."""

import asyncio
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load

from app.concepts.concept import digest_of
from app.errors import ApiError, EngineUnavailable, ErrorCode
from inference.interface.concepts import TrainingState
from tests.app.concepts.vectors.files import raw_gguf, vector, write_gguf, write_safetensors
from tests.app.contract.support import CONCEPTS, assert_error, chat, pieces, post, until
from tests.app.fakes import HANG, VECTORS, FakeEngine, pausing, train_badly, train_well
from tests.given_vectors import added_by

PATH = "/steering_concepts"
IMPORT = f"{PATH}/import"
FILE = {"content-type": "application/octet-stream"}
GGUF = write_gguf({1: vector(), 2: vector(3.0)})
VALUES = np.concatenate([vector(), vector(3.0)]).tobytes()
PAIRS = [
    {"positive": "Thanks!", "negative": "So?"},
    {"positive": "Hi!", "negative": "What?", "prompt": "Hello"},
]


async def export(client: httpx.AsyncClient, path: str = f"{PATH}/a/vectors") -> bytes:
    response = await client.get(path)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/octet-stream"
    return response.content


async def give(client: httpx.AsyncClient, data: bytes = GGUF, **params: str) -> httpx.Response:
    """Imports a file."""
    return await client.post(IMPORT, content=data, params=params, headers=FILE)


async def given(client: httpx.AsyncClient, data: bytes = GGUF, **params: str) -> dict[str, Any]:
    response = await give(client, data, **params)
    assert response.status_code == 201, response.text
    return response.json()


async def listed(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    return (await client.get(PATH)).json()["data"]


def files(directory: Path) -> list[str]:
    stored = directory / "data" / "concepts"
    return sorted(os.listdir(stored)) if stored.exists() else []


@pytest.fixture
async def fresh(serve) -> httpx.AsyncClient:
    """A client of a new gateway without concepts."""
    return await serve()


@pytest.mark.parametrize("path", [f"{PATH}/a/vectors", f"/v1{PATH}/_worker/a/vectors"])
async def test_a_concepts_vectors_are_a_safetensors_file(
    client: httpx.AsyncClient, engine: FakeEngine, path: str
) -> None:
    response = await client.get(path)
    assert response.headers["content-disposition"] == 'attachment; filename="a.safetensors"'
    tensors = load(response.content)
    assert set(tensors) == {"direction.1", "direction.2"}
    assert [np.linalg.norm(tensor) for tensor in tensors.values()] == pytest.approx([1, 1])
    assert engine.exports == [digest_of(CONCEPTS["a"])]


async def test_an_export_waits_until_the_concept_is_trained_and_measured(
    untrained: httpx.AsyncClient, engine: FakeEngine
) -> None:
    go_on = asyncio.Event()
    engine.training = pausing(go_on, state=TrainingState.MEASURING)
    exporting = asyncio.create_task(export(untrained))
    await until(lambda: engine.in_training)
    await asyncio.sleep(0.02)
    assert engine.exports == []
    go_on.set()
    assert load(await exporting)


async def test_a_concept_called_vectors_is_not_an_export(
    fresh: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """_worker/vectors is the id of a concept, and not the vectors of the concept called _worker."""
    response = await fresh.get(f"{PATH}/_worker/vectors")
    assert_error(response, 404, "UNKNOWN_STEERING_CONCEPT", "_worker/vectors")
    for name in ("vectors", "_worker"):
        concept = await given(fresh, name=name)
        assert (await fresh.get(f"{PATH}/_worker/{name}")).json() == concept
        assert load(await export(fresh, f"{PATH}/_worker/{name}/vectors"))
    assert (await fresh.delete(f"{PATH}/_worker/vectors")).status_code == 204


@pytest.mark.parametrize("name", ["nobody", "_worker/nobody", "%2e%2e", "a/", "a%00", "x" * 5000])
async def test_vectors_of_an_unknown_concept_are_a_404(client: httpx.AsyncClient, name: str) -> None:
    assert_error(await client.get(f"{PATH}/{name}/vectors"), 404, "UNKNOWN_STEERING_CONCEPT")


async def test_a_concept_that_the_model_cannot_use_has_no_vectors(
    untrained: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.training = train_badly
    response = await untrained.get(f"{PATH}/a/vectors")
    assert_error(response, 400, "INVALID_REQUEST", "_worker/a cannot be used", "differ in nothing")


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (EngineUnavailable(), 503, "UNAVAILABLE"),
        (ApiError(ErrorCode.UNKNOWN_STEERING_CONCEPT, "no such steering concept"), 503, "UNAVAILABLE"),
        (RuntimeError("/srv/secret"), 500, "INTERNAL"),
    ],
)
async def test_an_export_that_fails_in_the_engine_is_reported(
    client: httpx.AsyncClient, engine: FakeEngine, refusal: Exception, status: int, code: str
) -> None:
    engine.question_refusal = refusal
    response = await client.get(f"{PATH}/a/vectors")
    assert_error(response, status, code)
    assert "secret" not in response.text


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_a_control_vector_becomes_a_concept(
    fresh: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path, prefix: str
) -> None:
    params = {"name": "kind", "description": "Kind words"}
    response = await fresh.post(prefix + IMPORT, content=GGUF, params=params)
    assert response.status_code == 201
    concept = response.json()
    [command] = engine.trainings
    assert command.vectors is not None
    assert (command.vectors.blocks, command.vectors.values) == ((1, 2), VALUES)
    assert command.positive == command.negative == command.pair_prompts == []
    assert concept["id"] == "_worker/kind"
    assert (concept["description"], concept["num_examples"]) == ("Kind words", 0)
    assert (concept["imported"], concept["shipped"], concept["state"]) == (True, False, "ready")
    assert (await fresh.get(f"{PATH}/kind")).json() == concept
    assert [card["imported"] for card in await listed(fresh)] == [True]
    assert files(tmp_path) == ["kind.safetensors"]
    assert (await chat(fresh, steering_concepts=["kind"])).status_code == 200
    assert engine.requests[-1].steering is not None
    assert list(engine.requests[-1].steering.strengths) == [command.concept]


async def test_an_imported_concept_survives_a_restart(
    fresh: httpx.AsyncClient, engine: FakeEngine, serve, tmp_path: Path
) -> None:
    concept = await given(fresh, name="kind")
    again = await serve()
    [card] = await listed(again)
    assert card == {name: concept[name] for name in card} | {"state": "untrained", "progress": 0.0}
    assert (await chat(again, steering_concepts=["kind"])).status_code == 200
    first, second = engine.trainings
    assert first == second
    assert (await again.delete(f"{PATH}/kind")).status_code == 204
    assert (await listed(again), files(tmp_path)) == ([], [])
    assert await listed(await serve()) == []


async def test_an_export_can_be_imported(fresh: httpx.AsyncClient, engine: FakeEngine, serve) -> None:
    await post(fresh, PATH, {"examples": PAIRS, "name": "kind", "description": "Kind words"})
    data = await export(fresh, f"{PATH}/kind/vectors")
    assert_error(await give(fresh, data), 409, "CONFLICT", "_worker/kind", param="name")
    copy = await given(fresh, data, name="copy")
    assert copy["description"] == "Kind words"
    vectors = engine.trainings[-1].vectors
    assert vectors is not None
    assert added_by(vectors) == pytest.approx(added_by(VECTORS))
    assert (vectors.down_scale, vectors.max_strength, vectors.max_down_strength) == (0.5, 1.75, 1.25)
    assert (vectors.reading_block, vectors.reading_range) == (1, (-2.0, 6.0))
    await fresh.delete(f"{PATH}/kind")
    assert (await given(fresh, data, description="mine"))["id"] == "_worker/kind"
    assert {card["id"]: card["description"] for card in await listed(fresh)} == {
        "_worker/copy": "Kind words",
        "_worker/kind": "mine",
    }


async def test_an_export_of_examples_without_a_name_is_named_by_its_vectors(fresh: httpx.AsyncClient) -> None:
    """Its id is the digest of examples, which the file does not have."""
    concept = (await post(fresh, PATH, {"examples": PAIRS})).json()
    data = await export(fresh, f"{PATH}/{concept['id']}/vectors")
    await fresh.delete(f"{PATH}/{concept['id']}")
    copy = await given(fresh, data)
    assert re.fullmatch("_worker/[0-9a-f]{64}", copy["id"])
    assert copy["id"] != concept["id"]
    assert (await given(fresh, data))["id"] == copy["id"]
    assert (await given(fresh, data, name="x"))["id"] == "_worker/x"
    own = concept["id"].removeprefix("_worker/")
    assert_error(await give(fresh, data, name=own), 400, "INVALID_REQUEST", "is a digest", param="name")


async def test_examples_in_the_file_measure_the_vectors(
    fresh: httpx.AsyncClient, engine: FakeEngine, serve, tmp_path: Path
) -> None:
    data = write_safetensors({1: vector()}, name="kind", description="Kind", examples=json.dumps(PAIRS))
    concept = await given(fresh, data)
    assert (concept["id"], concept["description"], concept["num_examples"]) == ("_worker/kind", "Kind", 2)
    [command] = engine.trainings
    assert command.vectors is not None
    assert len(command.positive) == len(command.negative) == len(command.pair_prompts) == 2
    again = await serve()
    assert await given(again, data) == concept
    assert files(tmp_path) == ["kind.safetensors"]


async def test_the_same_vectors_with_other_examples_are_measured_anew(
    fresh: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for number, examples in enumerate((PAIRS, PAIRS[:1], None)):
        extra = {} if examples is None else {"examples": json.dumps(examples)}
        await given(fresh, write_safetensors({1: vector()}, **extra), name=f"x{number}")
    assert len({command.concept for command in engine.trainings}) == 3


async def test_importing_the_same_file_again_returns_the_concept(
    fresh: httpx.AsyncClient, engine: FakeEngine
) -> None:
    one, two = await asyncio.gather(given(fresh, name="kind"), given(fresh, name="kind"))
    assert one == two
    assert len(engine.trainings) == 1
    other = write_gguf({1: vector(5.0)})
    assert_error(await give(fresh, other, name="kind"), 409, "CONFLICT", "_worker/kind", param="name")


async def test_examples_may_not_take_the_name_of_an_imported_concept(fresh: httpx.AsyncClient) -> None:
    await given(fresh, name="kind")
    response = await post(fresh, PATH, {"examples": PAIRS, "name": "kind"})
    assert_error(response, 409, "CONFLICT", "_worker/kind", param="name")


BAD_EXAMPLES = {
    "no JSON": ("[", "examples"),
    "no array": ("{}", "examples"),
    "half a surrogate pair": ('[{"positive": "\\ud800", "negative": "a"}]', "examples"),
    "none": ("[]", "examples"),
    "half a pair": ('[{"positive": "a"}]', "examples[0].negative"),
    "a blank text": ('[{"positive": " ", "negative": "a"}]', "examples[0].positive"),
    "equal texts": ('[{"positive": "a", "negative": "a"}]', "examples[0].negative"),
    "more of the body": ('[], "name": "x"', "examples"),
    "beyond the context": (json.dumps([{"positive": "x" * 250, "negative": "a"}]), "examples[0].positive"),
}


@pytest.mark.parametrize(("examples", "param"), list(BAD_EXAMPLES.values()), ids=list(BAD_EXAMPLES))
async def test_invalid_examples_are_refused(
    fresh: httpx.AsyncClient, tmp_path: Path, examples: str, param: str | None
) -> None:
    data = write_safetensors({1: vector()}, examples=examples)
    error = assert_error(await give(fresh, data, name="x"), 400, "INVALID_REQUEST")
    assert error["param"] == param
    assert (await listed(fresh), files(tmp_path)) == ([], [])


BAD_PARAMS: dict[str, dict[str, str]] = {
    "an empty name": {"name": ""},
    "a path": {"name": "../x"},
    "a newline": {"name": "x\n"},
    "a dot": {"name": "x.json"},
    "a long name": {"name": "x" * 65},
    "a name of 10 KB": {"name": "x" * 10_240},
    "a digest": {"name": "0f" * 32},
    "no name": {},
}


@pytest.mark.parametrize("params", list(BAD_PARAMS.values()), ids=list(BAD_PARAMS))
async def test_an_invalid_name_is_refused(
    fresh: httpx.AsyncClient, tmp_path: Path, params: dict[str, str]
) -> None:
    assert_error(await give(fresh, **params), 400, "INVALID_REQUEST", "name", param="name")
    assert (await listed(fresh), files(tmp_path)) == ([], [])


async def test_a_long_description_is_refused(fresh: httpx.AsyncClient) -> None:
    response = await give(fresh, name="x", description="x" * 1001)
    assert_error(response, 400, "INVALID_REQUEST", "description", param="description")
    data = write_safetensors({1: vector()}, name="x", description="x" * 1001)
    assert_error(await give(fresh, data), 400, "INVALID_REQUEST", "description", param="description")


@pytest.mark.parametrize("name", ["../x", "", "x" * 65, "a b"])
async def test_an_invalid_name_in_the_file_is_refused(fresh: httpx.AsyncClient, name: str) -> None:
    data = write_safetensors({1: vector()}, id=name)
    assert_error(await give(fresh, data), 400, "INVALID_REQUEST", "name", param="name")


BAD_FILES = {
    "empty": (b"", "it is empty"),
    "a pickle": (pickle.dumps([1.0]), "convert it first"),
    "JSON": (b'{"examples": []}', "must be a safetensors file or a GGUF control vector"),
    "another hidden size": (write_gguf({1: np.ones(16, np.float32)}), "hidden size is 8"),
    "another number of blocks": (write_gguf({7: vector()}), "made for another model"),
    "a lie": (raw_gguf(num_tensors=2**60), "tensors"),
    "not finite": (write_safetensors({1: vector() * np.nan}), "not finite"),
    "a model": (write_gguf({1: vector()}, architecture="llama"), "controlvector"),
}


@pytest.mark.parametrize(("data", "rule"), list(BAD_FILES.values()), ids=list(BAD_FILES))
async def test_a_file_that_cannot_be_used_leaves_nothing(
    fresh: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path, data: bytes, rule: str
) -> None:
    assert_error(await give(fresh, data, name="x"), 400, "INVALID_REQUEST", rule)
    assert (await listed(fresh), files(tmp_path), engine.trainings) == ([], [], [])


async def test_a_large_file_is_refused_by_its_own_limit(serve, tmp_path: Path) -> None:
    client = await serve(server={"max_body_bytes": 100}, limits={"max_vector_bytes": 2 * len(GGUF)})
    assert len(GGUF) > 100
    await given(client, name="x")
    large = bytes(2 * len(GGUF) + 1)
    for body in (large, pieces(large[:100], large[100:])):
        response = await client.post(f"/v1{IMPORT}", content=body, params={"name": "y"})
        assert_error(response, 413, "PAYLOAD_TOO_LARGE", str(2 * len(GGUF)))
    assert_error(await post(client, PATH, {"examples": PAIRS * 9}), 413, "PAYLOAD_TOO_LARGE", "100")
    assert files(tmp_path) == ["x.safetensors"]


async def test_a_form_or_a_compressed_body_is_refused(fresh: httpx.AsyncClient) -> None:
    form = {"file": ("x.gguf", GGUF)}
    response = await fresh.post(IMPORT, files=form, params={"name": "x"})
    assert_error(response, 415, "UNSUPPORTED_MEDIA_TYPE", "--data-binary")
    headers = {"content-encoding": "gzip"}
    response = await fresh.post(IMPORT, content=GGUF, params={"name": "x"}, headers=headers)
    assert_error(response, 415, "UNSUPPORTED_MEDIA_TYPE", "compressed")


async def test_vectors_belong_to_the_model_that_they_were_imported_for(
    fresh: httpx.AsyncClient, engine: FakeEngine, serve, reworked, tmp_path: Path
) -> None:
    await given(fresh, name="kind")
    other = reworked(weights_digest="c0" * 32)
    client = await serve(other, model={"name": "large"})
    concept = (await client.get(f"{PATH}/kind")).json()
    assert (concept["state"], concept["report"]) == ("failed", None)
    for word in ("'tiny'", "5f5f5f5f5f5f…", "'large'", "c0c0c0c0c0c0…"):
        assert word in concept["error"]
    [card] = await listed(client)
    assert card["state"] == "failed"
    for _ in range(2):
        response = await chat(client, model="large", steering_concepts=["kind"])
        assert_error(response, 400, "INVALID_REQUEST", "_worker/kind cannot be used", "'tiny'")
    assert_error(await client.get(f"{PATH}/kind/vectors"), 400, "INVALID_REQUEST", "'tiny'")
    response = await post(client, f"{PATH}/kind/read", {"texts": ["a"]})
    assert_error(response, 400, "INVALID_REQUEST", "'tiny'")
    assert len(engine.trainings) == 1, "the import itself"
    assert files(tmp_path) == ["kind.safetensors"]
    assert (await client.delete(f"{PATH}/kind")).status_code == 204
    await given(client, name="kind")
    assert (await chat(client, model="large", steering_concepts=["kind"])).status_code == 200


async def test_an_export_of_another_model_is_refused_by_name(
    fresh: httpx.AsyncClient, serve, reworked, tmp_path: Path
) -> None:
    await given(fresh, name="kind")
    data = await export(fresh, f"{PATH}/kind/vectors")
    client = await serve(reworked(weights_digest="c0" * 32), model={"name": "large"})
    response = await give(client, data, name="copy")
    assert_error(response, 400, "INVALID_REQUEST", "'tiny'", "'large'", "c0c0c0c0c0c0…")
    assert files(tmp_path) == ["kind.safetensors"]


@pytest.mark.parametrize("failure", [EngineUnavailable(), RuntimeError("secret")])
async def test_a_failure_of_the_engine_leaves_nothing(
    fresh: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path, failure: Exception
) -> None:
    engine.training = pausing(failure)
    response = await give(fresh, name="x")
    assert response.status_code in (500, 503)
    assert "secret" not in response.text
    assert (await listed(fresh), files(tmp_path)) == ([], [])
    engine.training = train_well
    await given(fresh, name="x")


@pytest.mark.parametrize("step", ["fsync", "replace", "mkdir"])
async def test_a_full_disk_leaves_nothing(
    fresh: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        response = await give(fresh, name="x")
    assert_error(response, 503, "UNAVAILABLE", "the concept cannot be stored")
    assert (await listed(fresh), files(tmp_path)) == ([], [])
    await given(fresh, name="x")


async def test_deleting_a_concept_ends_its_import(
    fresh: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.training = pausing(HANG, state=TrainingState.MEASURING)
    giving = asyncio.create_task(give(fresh, name="x"))
    await until(lambda: engine.in_training)
    assert (await fresh.delete(f"{PATH}/x")).status_code == 204
    assert_error(await giving, 409, "CONFLICT", "_worker/x", "deleted")
    assert (await listed(fresh), files(tmp_path)) == ([], [])


async def test_imports_count_as_creations(serve) -> None:
    client = await serve(limits={"max_concepts": 1})
    await given(client, name="x")
    assert_error(await give(client, write_gguf({1: vector()}), name="y"), 409, "CONFLICT", "1 created")


async def test_a_model_without_a_chat_template_takes_no_vectors(
    serve, templateless: FakeEngine, tmp_path: Path
) -> None:
    client = await serve(templateless)
    assert_error(await give(client, name="x"), 400, "MISSING_CAPABILITY", param="model")
    assert files(tmp_path) == []


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize(
    ("path", "allowed"), [(IMPORT, "POST, OPTIONS"), (f"{PATH}/a/vectors", "GET, HEAD, OPTIONS")]
)
async def test_other_methods_are_not_allowed(
    client: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    response = await client.request(method, path)
    assert_error(response, 405, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == allowed

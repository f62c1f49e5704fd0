"""The routes of /steering_concepts, and chat requests that wait for a concept."""

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.concepts.concept import digest_of
from app.concepts.neutral_texts import NEUTRAL_QUESTIONS, NEUTRAL_TEXTS, TRAINING_PROMPT
from app.concepts.store import ConceptStore
from app.errors import ApiError, EngineUnavailable, ErrorCode
from inference.interface.concepts import SampleAnswer, TrainingState, TrainingUpdate
from inference.interface.requests import SteeringSpec
from tests.app.contract.support import (
    CONCEPTS,
    JSON,
    LONGEST_NAME,
    assert_error,
    chat,
    pairs,
    post,
    store_concepts,
    until,
)
from tests.app.fakes import (
    HANG,
    REPORT,
    SPECIAL_TOKENS,
    FakeEngine,
    FakeGeneration,
    pausing,
    train_badly,
    train_well,
)

PATH = "/steering_concepts"
PAIR = {"positive": "Thanks!", "negative": "I am obliged."}
OTHER = {"positive": "Hi!", "negative": "Good day."}
CARD = {
    *("id", "object", "created", "description", "num_examples", "imported", "shipped"),
    *("state", "progress"),
}

prefixes = pytest.mark.parametrize("prefix", ["", "/v1"])
both_ids = pytest.mark.parametrize("worker", ["", "_worker/"])


@pytest.fixture
async def client(serve) -> httpx.AsyncClient:
    """A client of a new gateway without concepts."""
    return await serve()


async def create(client: httpx.AsyncClient, *examples: dict[str, Any], **fields: Any) -> httpx.Response:
    return await post(client, PATH, {"examples": list(examples) or [PAIR], **fields})


async def created(client: httpx.AsyncClient, *examples: dict[str, Any], **fields: Any) -> dict[str, Any]:
    response = await create(client, *examples, **fields)
    assert response.status_code == 201, response.text
    assert response.headers["content-type"].startswith("application/json")
    return response.json()


async def listed(client: httpx.AsyncClient) -> list[str]:
    answer = (await client.get(PATH)).json()
    assert answer["object"] == "list"
    return [card["id"] for card in answer["data"]]


def files(directory: Path) -> list[str]:
    stored = directory / "data" / "concepts"
    return sorted(os.listdir(stored)) if stored.exists() else []


@prefixes
async def test_without_a_name_the_id_is_made_from_the_examples(
    client: httpx.AsyncClient, tmp_path: Path, prefix: str
) -> None:
    response = await post(client, prefix + PATH, {"examples": [PAIR, OTHER]})
    assert response.status_code == 201
    concept = response.json()
    assert concept.keys() == CARD | {"report", "error"}
    assert re.fullmatch(r"_worker/[0-9a-f]{64}", concept["id"])
    assert (concept["object"], concept["num_examples"], concept["shipped"]) == ("steering_concept", 2, False)
    assert (concept["state"], concept["progress"], concept["error"]) == ("ready", 1.0, None)
    assert concept["report"]["effects"][0] == {
        "strength": -1.0,
        "shift": -0.5,
        "shift_error": 0.125,
        "perplexity_ratio": 1.125,
    }
    assert (await client.get(f"{prefix}{PATH}/{concept['id']}")).json() == concept
    assert files(tmp_path) == [concept["id"].removeprefix("_worker/") + ".json"]


async def test_the_id_is_the_sha256_of_the_pairs(client: httpx.AsyncClient) -> None:
    """The expected id is fixed, because clients compute it themselves and it must never change."""
    examples = [{"positive": "é \u2028日🙂", "negative": '"\\\n'}]
    concept = await created(client, *examples)
    assert concept["id"] == "_worker/67ace45c2ea1de51ed54abd9f249ab46ec80663ea6f54f6fad395a05f8e37873"


async def test_the_id_covers_the_prompts_of_examples_that_have_one(client: httpx.AsyncClient) -> None:
    """The expected id is fixed as well. An example without a prompt counts as the pair that it is."""
    concept = await created(client, PAIR, OTHER | {"prompt": "Greet me."}, {**PAIR, "prompt": None})
    raw = '[["Thanks!","I am obliged."],["Hi!","Good day.","Greet me."],["Thanks!","I am obliged."]]'
    assert concept["id"] == "_worker/" + hashlib.sha256(raw.encode()).hexdigest()
    assert concept["id"] != (await created(client, PAIR, OTHER, PAIR))["id"]


async def test_the_prompt_of_an_example_is_the_users_turn(
    client: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Any
) -> None:
    await created(client, PAIR, OTHER | {"prompt": "Greet me."})
    [command] = engine.trainings
    prompts = [tiny_tokenizer.decode(ids, skip_special_tokens=False) for ids in command.pair_prompts]
    assert prompts == [
        f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        for text in (TRAINING_PROMPT, "Greet me.")
    ]


async def test_prompts_survive_a_restart(client: httpx.AsyncClient, serve) -> None:
    concept = await created(client, OTHER | {"prompt": "Greet me."}, name="greeting")
    assert await created(await serve(), OTHER | {"prompt": "Greet me."}, name="greeting") == concept
    assert_error(await create(await serve(), OTHER, name="greeting"), 409, "CONFLICT", param="name")


async def test_the_report_has_the_words_of_the_sample_answers(
    client: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Any
) -> None:
    samples = [SampleAnswer(-1.0, 1, [40, 41]), SampleAnswer(1.0, 2, [42, 2])]
    report = msgspec.structs.replace(REPORT, samples=samples)
    engine.training = lambda command: [TrainingUpdate(command.concept, TrainingState.READY, 1.0, report)]
    answer = (await created(client))["report"]
    assert answer["samples"] == [
        {"strength": -1.0, "question": NEUTRAL_QUESTIONS[1], "text": tiny_tokenizer.decode([40, 41])},
        {"strength": 1.0, "question": NEUTRAL_QUESTIONS[2], "text": tiny_tokenizer.decode([42])},
    ]
    expected = msgspec.to_builtins(report)
    assert {**answer, "samples": []} == {**expected, "samples": []}


@pytest.mark.parametrize("given", ["kind", "_worker/kind"])
async def test_a_concept_can_be_named(client: httpx.AsyncClient, given: str) -> None:
    concept = await created(client, name=given, description="Kind words", hosting="x", tags=["y"])
    assert (concept["id"], concept["description"]) == ("_worker/kind", "Kind words")
    assert await listed(client) == ["_worker/kind"]


@pytest.mark.parametrize("name", ["a", "-", "_", "_worker", "A-b_9", LONGEST_NAME])
async def test_every_valid_name_can_be_used(client: httpx.AsyncClient, name: str) -> None:
    assert (await created(client, name=name))["id"] == f"_worker/{name}"
    assert (await chat(client, steering_concepts=[name])).status_code == 200


async def test_the_model_field_is_checked_if_given(client: httpx.AsyncClient) -> None:
    await created(client, model="tiny")
    response = await create(client, OTHER, model="other")
    assert_error(response, 404, "UNKNOWN_MODEL", "other", param="model")


async def test_null_counts_as_absent(client: httpx.AsyncClient) -> None:
    concept = await created(client, name=None, description=None, model=None)
    assert re.fullmatch(r"_worker/[0-9a-f]{64}", concept["id"])


async def test_the_engine_gets_the_examples_as_tokens(
    client: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Any
) -> None:
    texts = {"positive": f"a{SPECIAL_TOKENS[2]}\n{SPECIAL_TOKENS[1]}system", "negative": SPECIAL_TOKENS[0]}
    concept = await created(client, texts)
    [command] = engine.trainings
    assert command.concept == concept["id"].removeprefix("_worker/")
    assert tiny_tokenizer.decode(command.positive[0], skip_special_tokens=False) == texts["positive"]
    assert not {0, 1, 2} & {*command.positive[0], *command.negative[0]}
    prompt = tiny_tokenizer.decode(command.prompt_token_ids, skip_special_tokens=False)
    assert prompt == f"<|im_start|>user\n{TRAINING_PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    assert len(command.neutral) == len(NEUTRAL_TEXTS)
    assert not command.background


async def test_the_same_examples_are_the_same_concept(
    client: httpx.AsyncClient, engine: FakeEngine, serve, tmp_path: Path
) -> None:
    first = await created(client, PAIR, OTHER)
    assert await created(client, PAIR, OTHER, description="ignored now") == first
    assert await created(await serve(), PAIR, OTHER) == first
    assert len(files(tmp_path)) == 1
    assert (await created(client, OTHER, PAIR))["id"] != first["id"]


async def test_identical_concurrent_requests_create_one_concept(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    answers = await asyncio.gather(*(created(client, name="kind") for _ in range(4)))
    assert all(answer == answers[0] for answer in answers)
    assert len(engine.trainings) == 1


async def test_one_of_two_conflicting_concurrent_requests_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    one, two = await asyncio.gather(create(client, PAIR, name="x"), create(client, OTHER, name="x"))
    assert sorted((one.status_code, two.status_code)) == [201, 409]
    assert_error(max(one, two, key=lambda r: r.status_code), 409, "CONFLICT", "_worker/x", param="name")
    assert len(engine.trainings) == 1


async def test_a_name_with_other_examples_is_taken(client: httpx.AsyncClient, tmp_path: Path) -> None:
    first = await created(client, name="kind")
    for examples in ([OTHER], [PAIR, OTHER], [PAIR, PAIR]):
        response = await create(client, *examples, name="kind")
        assert_error(response, 409, "CONFLICT", "_worker/kind", param="name")
    assert (await client.get(f"{PATH}/kind")).json() == first
    assert files(tmp_path) == ["kind.json"]


async def test_an_id_made_from_examples_is_reserved_for_them(client: httpx.AsyncClient) -> None:
    response = await create(client, name="0f" * 32)
    assert_error(response, 400, "INVALID_REQUEST", param="name")
    name = (await created(client))["id"]
    assert (await created(client, name=name))["id"] == name
    assert (await created(client, name="0F" * 32))["id"] == "_worker/" + "0F" * 32


async def test_shipped_concepts_are_listed_from_the_start(serve, tmp_path: Path) -> None:
    (tmp_path / "shipped").mkdir()
    file = tmp_path / "shipped" / "kind.yaml"
    file.write_text(json.dumps({"name": "kind", "description": "Kind", "examples": [PAIR]}))
    (tmp_path / "shipped" / "broken.yaml").write_text("name: [")
    client = await serve(steering={"concepts": str(tmp_path / "shipped")})
    answer = (await client.get(PATH)).json()
    [card] = answer["data"]
    assert card == {
        "id": "_worker/kind",
        "object": "steering_concept",
        "created": int(file.stat().st_mtime),
        "description": "Kind",
        "num_examples": 1,
        "imported": False,
        "shipped": True,
        "state": "untrained",
        "progress": 0.0,
    }
    [problem] = answer["problems"]
    assert problem["file"] == "broken.yaml"
    assert "not valid YAML" in problem["reason"]
    assert str(tmp_path) not in json.dumps(answer)
    assert_error(await create(client, OTHER, name="kind"), 409, "CONFLICT", param="name")
    assert_error(await client.delete(f"{PATH}/kind"), 409, "CONFLICT", "_worker/kind")
    same = await created(client, name="kind", description="another")
    assert (same["shipped"], same["description"], same["state"]) == (True, "Kind", "ready")
    assert files(tmp_path) == []


@prefixes
@both_ids
async def test_a_concept_is_read_by_its_id(client: httpx.AsyncClient, prefix: str, worker: str) -> None:
    concept = await created(client, name="kind")
    response = await client.get(f"{prefix}{PATH}/{worker}kind")
    assert (response.status_code, response.json()) == (200, concept)
    [card] = (await client.get(prefix + PATH)).json()["data"]
    assert card == {name: concept[name] for name in CARD}


@prefixes
@both_ids
async def test_a_concept_is_read_with_its_examples(
    client: httpx.AsyncClient, prefix: str, worker: str
) -> None:
    examples = [PAIR, {**OTHER, "prompt": "Greet me."}]
    concept = await created(client, *examples, name="kind")
    response = await client.get(f"{prefix}{PATH}/{worker}kind?examples=true")
    assert response.json() == {**concept, "examples": examples}
    assert "examples" not in (await client.get(f"{prefix}{PATH}/{worker}kind?examples=false")).json()
    assert_error(await client.get(f"{prefix}{PATH}/{worker}kind?examples=perhaps"), 400, "INVALID_REQUEST")


@prefixes
@both_ids
async def test_a_deleted_concept_is_gone(
    client: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path, prefix: str, worker: str
) -> None:
    await created(client, name="kind")
    response = await client.delete(f"{prefix}{PATH}/{worker}kind")
    assert (response.status_code, response.content) == (204, b"")
    assert (await listed(client), files(tmp_path)) == ([], [])
    assert engine.forgotten == [digest_of_pairs(PAIR)]
    for answer in (
        await client.get(f"{PATH}/kind"),
        await client.delete(f"{PATH}/kind"),
        await chat(client, steering_concepts=["kind"]),
    ):
        assert_error(answer, 404, "UNKNOWN_STEERING_CONCEPT", "_worker/kind")
    assert (await created(client, OTHER, name="kind"))["state"] == "ready"


def digest_of_pairs(*examples: dict[str, str]) -> str:
    return digest_of(tuple(type(pairs("")[0])(**example) for example in examples))


@pytest.mark.parametrize(
    "path",
    [
        "nobody",
        "_worker/nobody",
        "_worker/_worker/a",
        "../a",
        "%2e%2e%2fa",
        "..%2f..%2fetc%2fpasswd",
        "%2Fetc%2Fpasswd",
        "a%00",
        "a%0A",
        "%F0%9F%99%82",
        "%ff%fe",
        "%ED%A0%80",
        "a" * 10_240,
        "a/",
        "a.json",
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_id_of_no_concept_is_unknown(serve, tmp_path: Path, method: str, path: str) -> None:
    store_concepts(tmp_path / "data", {"a": pairs("a")})
    outside = tmp_path / "data" / "a.json"
    outside.write_text("{}")
    client = await serve()
    response = await client.request(method, f"{PATH}/{path}")
    code = "NOT_FOUND" if path == "../a" else "UNKNOWN_STEERING_CONCEPT"  # httpx resolves `..` itself
    assert_error(response, 404, code)
    assert outside.exists()
    assert files(tmp_path) == ["a.json"]


GOOD = json.dumps(PAIR)
BAD_FIELDS = {
    "no examples": ({}, "examples"),
    "null": ({"examples": None}, "examples"),
    "none": ({"examples": []}, "examples"),
    "a string": ({"examples": "abc"}, "examples"),
    "an object": ({"examples": PAIR}, "examples"),
    "a number": ({"examples": 5}, "examples"),
    "too many": ({"examples": [PAIR] * 1001}, "examples"),
    "100,000": ({"examples": [{"positive": "a", "negative": "b"}] * 100_000}, "examples"),
    "100,000 that are none": ({"examples": [0] * 100_000}, "examples"),
    "an example that is a pair": ({"examples": [PAIR, ["a", "b"]]}, "examples[1]"),
    "an example that is null": ({"examples": [PAIR, None]}, "examples[1]"),
    "no negative": ({"examples": [PAIR, {"positive": "a"}]}, "examples[1].negative"),
    "no positive": ({"examples": [{"negative": "a"}]}, "examples[0].positive"),
    "null for a text": ({"examples": [{"positive": None, "negative": "a"}]}, "examples[0].positive"),
    "a number for a text": ({"examples": [{"positive": 5, "negative": "a"}]}, "examples[0].positive"),
    "an array for a text": ({"examples": [{"positive": ["a"], "negative": "a"}]}, "examples[0].positive"),
    "an empty text": ({"examples": [PAIR, PAIR, PAIR, PAIR | {"positive": ""}]}, "examples[3].positive"),
    "a blank text": ({"examples": [PAIR | {"negative": " \n\t\u2003"}]}, "examples[0].negative"),
    "the same text twice": ({"examples": [{"positive": "a", "negative": "a"}]}, "examples[0].negative"),
    "a blank prompt": ({"examples": [PAIR, PAIR | {"prompt": " \n"}]}, "examples[1].prompt"),
    "a number for a prompt": ({"examples": [PAIR | {"prompt": 5}]}, "examples[0].prompt"),
    "a long prompt": ({"examples": [PAIR | {"prompt": "x" * 4001}]}, "examples[0].prompt"),
    "a prompt beyond the context": ({"examples": [PAIR | {"prompt": "x" * 250}]}, "examples[0].prompt"),
    "a long text": ({"examples": [PAIR | {"positive": "x" * 4001}]}, "examples[0].positive"),
    "a megabyte": ({"examples": [PAIR, PAIR | {"negative": "x" * 2**20}]}, "examples[1].negative"),
    "a text beyond the context": (
        {"examples": [PAIR, PAIR | {"negative": "x" * 250}]},
        "examples[1].negative",
    ),
    "an empty name": ({"examples": [PAIR], "name": ""}, "name"),
    "a name of the prefix": ({"examples": [PAIR], "name": "_worker/"}, "name"),
    "a name with a path": ({"examples": [PAIR], "name": "../x"}, "name"),
    "a name with a path inside": ({"examples": [PAIR], "name": "_worker/../x"}, "name"),
    "a name that is absolute": ({"examples": [PAIR], "name": "/etc/x"}, "name"),
    "a name with a newline": ({"examples": [PAIR], "name": "x\n"}, "name"),
    "a name with a null byte": ({"examples": [PAIR], "name": "x\x00"}, "name"),
    "a name with a dot": ({"examples": [PAIR], "name": "x.json"}, "name"),
    "a name with a letter from elsewhere": ({"examples": [PAIR], "name": "ä"}, "name"),
    "a name with a digit from elsewhere": ({"examples": [PAIR], "name": "٣"}, "name"),
    "a long name": ({"examples": [PAIR], "name": "x" * 65}, "name"),
    "a name of 10 KB": ({"examples": [PAIR], "name": "x" * 10_240}, "name"),
    "a name that is a number": ({"examples": [PAIR], "name": 5}, "name"),
    "a long description": ({"examples": [PAIR], "description": "x" * 1001}, "description"),
    "a description that is a number": ({"examples": [PAIR], "description": 5}, "description"),
    "a model that is a number": ({"examples": [PAIR], "model": 5}, "model"),
}


@pytest.mark.parametrize(("fields", "param"), list(BAD_FIELDS.values()), ids=list(BAD_FIELDS))
async def test_an_invalid_field_is_named_and_nothing_is_stored(
    client: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path, fields: dict[str, Any], param: str
) -> None:
    response = await asyncio.wait_for(post(client, PATH, fields), 5)
    assert_error(response, 400, "INVALID_REQUEST", param, param=param)
    assert (await listed(client), files(tmp_path), engine.trainings) == ([], [], [])


BAD_BODIES = {
    "NaN": f'{{"examples": [{GOOD}], "description": NaN}}'.encode(),
    "Infinity in an ignored field": f'{{"examples": [{GOOD}], "x": Infinity}}'.encode(),
    "lone surrogate": b'{"examples": [{"positive": "\\ud800", "negative": "a"}]}',
    "bad utf-8": b'{"examples": [{"positive": "\xff\xfe", "negative": "a"}]}',
    "cut": f'{{"examples": [{GOOD}]'.encode(),
    "an array": f"[{GOOD}]".encode(),
    "deep": b'{"examples": ' + b"[" * 100_000,
    "empty": b"",
}


@pytest.mark.parametrize("raw", list(BAD_BODIES.values()), ids=list(BAD_BODIES))
async def test_an_invalid_body_is_refused(client: httpx.AsyncClient, tmp_path: Path, raw: bytes) -> None:
    assert_error(await client.post(PATH, content=raw, headers=JSON), 400, "INVALID_REQUEST")
    assert (await listed(client), files(tmp_path)) == ([], [])


async def test_a_body_with_a_repeated_key_is_read_with_one_value_or_refused(
    client: httpx.AsyncClient,
) -> None:
    raw = f'{{"examples": [], "examples": [{GOOD}], "name": "../x", "name": "x"}}'
    response = await client.post(PATH, content=raw, headers=JSON)
    if response.status_code == 201:
        assert response.json()["id"] == "_worker/x"
    else:
        assert_error(response, 400, "INVALID_REQUEST")


async def test_the_configured_limits_are_enforced(serve, engine: FakeEngine) -> None:
    limits = {"max_examples": 2, "max_example_characters": 3, "max_concept_tokens": 8}
    client = await serve(limits=limits)
    short, long = {"positive": "日本語", "negative": "b"}, {"positive": "aaaa", "negative": "b"}
    two = [{"positive": "a", "negative": "bb"}, {"positive": "ccc", "negative": "dd"}]
    await created(client, *two)
    assert_error(await create(client, *two, two[0]), 400, "INVALID_REQUEST", "1 to 2", param="examples")
    assert_error(
        await create(client, long), 400, "INVALID_REQUEST", "at most 3", param="examples[0].positive"
    )
    assert_error(await create(client, short), 400, "INVALID_REQUEST", "8 tokens", param="examples")
    assert len(engine.trainings) == 1


async def test_the_number_of_created_concepts_is_limited(serve, tmp_path: Path) -> None:
    client = await serve(limits={"max_concepts": 1})
    await created(client)
    assert_error(await create(client, OTHER), 409, "CONFLICT", "1 created")
    await created(client)
    assert len(files(tmp_path)) == 1


async def test_the_number_of_concurrent_creations_is_limited(
    serve, engine: FakeEngine, tmp_path: Path
) -> None:
    client = await serve(limits={"max_trainings": 1})
    go_on = asyncio.Event()
    engine.training = pausing(go_on)
    creating = asyncio.create_task(created(client, name="kind"))
    await until(lambda: engine.in_training)
    refused = await create(client, OTHER)
    assert_error(refused, 503, "QUEUE_FULL", "1 concepts are being created")
    assert int(refused.headers["retry-after"]) >= 1
    again = asyncio.create_task(created(client, name="kind"))
    await asyncio.sleep(0.01)
    go_on.set()
    assert (await creating)["id"] == (await again)["id"]
    await created(client, OTHER)
    assert len(files(tmp_path)) == 2


async def test_a_model_without_a_chat_template_has_no_concepts(
    serve, templateless: FakeEngine, tmp_path: Path
) -> None:
    client = await serve(templateless)
    assert_error(await create(client), 400, "MISSING_CAPABILITY", param="model")
    assert (await listed(client), files(tmp_path)) == ([], [])


async def test_a_concept_that_cannot_be_trained_is_refused_with_the_reason(
    client: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.training = train_badly
    assert_error(await create(client), 400, "INVALID_REQUEST", "differ in nothing")
    assert (await listed(client), files(tmp_path)) == ([], [])
    engine.training = train_well
    await created(client)


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (EngineUnavailable(), 503, "UNAVAILABLE"),
        (RuntimeError("CUDA error in /srv/secret/worker.py"), 500, "INTERNAL"),
    ],
)
async def test_a_failure_in_training_leaks_nothing_and_stores_nothing(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    tmp_path: Path,
    failure: Exception,
    status: int,
    code: str,
) -> None:
    engine.training = pausing(failure)
    response = await create(client)
    assert_error(response, status, code)
    assert "secret" not in response.text
    assert (await listed(client), files(tmp_path)) == ([], [])


@pytest.mark.parametrize("step", ["fsync", "replace", "mkdir"])
async def test_a_full_or_read_only_disk_is_reported_and_survived(
    client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        response = await create(client)
    assert_error(response, 503, "UNAVAILABLE", "the concept cannot be stored")
    assert str(tmp_path) not in response.text
    assert (await listed(client), files(tmp_path)) == ([], [])
    assert (await chat(client)).status_code == 200
    await created(client)


async def test_a_bug_in_storing_leaks_nothing_and_stores_nothing(
    client: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("secret")

    with monkeypatch.context() as patch:
        patch.setattr(ConceptStore, "write", fail)
        response = await create(client)
    assert_error(response, 500, "INTERNAL")
    assert "secret" not in response.text
    assert (await listed(client), files(tmp_path)) == ([], [])
    await created(client)


async def test_a_data_directory_that_is_a_file_is_survived(serve, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    client = await serve(data_directory=str(tmp_path / "file"))
    assert_error(await create(client), 503, "UNAVAILABLE", "the concept cannot be stored")


async def test_a_concept_that_is_being_created_is_listed_and_can_be_used(
    client: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path
) -> None:
    go_on = asyncio.Event()
    engine.training = pausing(go_on, state=TrainingState.MEASURING)
    creating = asyncio.create_task(created(client, name="kind"))
    await until(lambda: engine.in_training)
    await asyncio.sleep(0.01)
    concept = (await client.get(f"{PATH}/kind")).json()
    assert (concept["state"], concept["progress"], concept["report"]) == ("measuring", 0.5, None)
    assert (await chat(client, steering_concepts=["kind"])).status_code == 200
    assert files(tmp_path) == []
    go_on.set()
    assert (await creating)["state"] == "ready"
    assert files(tmp_path) == ["kind.json"]


async def test_deleting_a_concept_ends_its_creation(
    client: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.training = pausing(HANG)
    creating = asyncio.create_task(create(client, name="kind"))
    await until(lambda: engine.in_training)
    assert (await client.delete(f"{PATH}/kind")).status_code == 204
    assert_error(await creating, 409, "CONFLICT", "_worker/kind", "deleted")
    assert not engine.in_training
    assert (await listed(client), files(tmp_path)) == ([], [])


@pytest.fixture
async def stored(serve, tmp_path: Path) -> httpx.AsyncClient:
    """A client of a new gateway that has loaded two stored concepts."""
    store_concepts(tmp_path / "data", {"a": CONCEPTS["a"], "b": CONCEPTS["b"]})
    return await serve()


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_chat_waits_until_its_concepts_can_be_used(
    stored: httpx.AsyncClient, engine: FakeEngine, streamed: bool
) -> None:
    go_on = asyncio.Event()
    engine.training = pausing(go_on)
    chatting = asyncio.create_task(chat(stored, steering_concepts=["b", "a"], stream=streamed))
    await until(lambda: len(engine.in_training) == 2)
    await asyncio.sleep(0.01)
    assert engine.requests == []
    go_on.set()
    assert (await chatting).status_code == 200
    strengths = {digest_of(CONCEPTS[name]): 1.0 for name in "ab"}
    assert engine.requests[0].steering == SteeringSpec(strengths)
    assert (await chat(stored, steering_concepts=["a"])).status_code == 200
    assert len(engine.trainings) == 2


async def test_a_chat_does_not_wait_for_the_measurements(
    stored: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.training = pausing(HANG, state=TrainingState.MEASURING)
    assert (await chat(stored, steering_concepts=["a"])).status_code == 200


async def test_strength_zero_trains_nothing(stored: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await chat(stored, steering_concepts=["a"], steering_strength=0)).status_code == 200
    assert engine.trainings == []
    assert engine.requests[0].steering is None


@pytest.mark.parametrize("fields", [{"max_tokens": 10**6}, {"n": 10**6}, {"logit_bias": {"300": 1}}])
async def test_nothing_is_trained_for_a_chat_that_is_refused(
    stored: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    assert (await chat(stored, steering_concepts=["a"], **fields)).status_code == 400
    assert_error(
        await chat(stored, steering_concepts=["a", "nobody"]), 404, "UNKNOWN_STEERING_CONCEPT", "nobody"
    )
    assert engine.trainings == []


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_chat_with_a_concept_that_the_model_cannot_use_gets_the_reason(
    stored: httpx.AsyncClient, engine: FakeEngine, streamed: bool
) -> None:
    engine.training = train_badly
    for _ in range(2):
        response = await chat(stored, steering_concepts=["a"], stream=streamed)
        assert_error(
            response,
            400,
            "INVALID_REQUEST",
            "_worker/a cannot be used with this model",
            "differ in nothing",
            param="steering_concepts",
        )
    detail = (await stored.get(f"{PATH}/a")).json()
    assert (detail["state"], detail["report"]) == ("failed", None)
    assert "differ in nothing" in detail["error"]


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_chat_whose_concept_is_deleted_while_it_waits_gets_a_404(
    stored: httpx.AsyncClient, engine: FakeEngine, streamed: bool
) -> None:
    engine.training = pausing(HANG)
    chatting = asyncio.create_task(chat(stored, steering_concepts=["a"], stream=streamed))
    await until(lambda: engine.in_training)
    assert (await stored.delete(f"{PATH}/a")).status_code == 204
    assert_error(await chatting, 404, "UNKNOWN_STEERING_CONCEPT", "_worker/a", param="steering_concepts")
    assert not engine.in_training


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_chat_that_waits_for_a_concept_ends_when_the_engine_is_lost(
    stored: httpx.AsyncClient, engine: FakeEngine, streamed: bool
) -> None:
    lost = asyncio.Event()
    engine.training = pausing(lost, EngineUnavailable())
    chatting = asyncio.create_task(chat(stored, steering_concepts=["a"], stream=streamed))
    await until(lambda: engine.in_training)
    lost.set()
    response = await chatting
    assert_error(response, 503, "UNAVAILABLE")
    assert int(response.headers["retry-after"]) >= 1


def refuse_for_concept(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, before: Callable[[], Awaitable[Any]]
) -> None:
    """Makes the engine refuse requests like a worker that has just dropped their concept."""

    async def submit(request: Any) -> FakeGeneration:
        await before()
        digest = next(iter(request.steering.strengths))
        raise ApiError(ErrorCode.UNKNOWN_STEERING_CONCEPT, f"no such steering concept: {digest}")

    monkeypatch.setattr(engine, "submit", submit)


async def test_a_concept_deleted_just_before_its_use_is_reported_as_unknown_by_its_id(
    stored: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_for_concept(engine, monkeypatch, lambda: stored.delete(f"{PATH}/b"))
    response = await chat(stored, steering_concepts=["a", "b"])
    assert_error(response, 404, "UNKNOWN_STEERING_CONCEPT", "_worker/b", param="steering_concepts")
    assert digest_of(CONCEPTS["b"]) not in response.text


async def test_a_concept_that_the_engine_lost_is_trained_again_for_the_next_chat(
    stored: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse_for_concept(engine, patch, lambda: asyncio.sleep(0))
        response = await chat(stored, steering_concepts=["a"])
        assert_error(response, 503, "UNAVAILABLE")
        assert digest_of(CONCEPTS["a"]) not in response.text
    assert (await chat(stored, steering_concepts=["a"])).status_code == 200
    assert len(engine.trainings) == 2


async def test_concepts_and_their_trainings_are_counted(
    stored: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await created(stored)
    engine.training = train_badly
    await create(stored, OTHER)
    await stored.delete(f"{PATH}/a")
    text = (await stored.get("/metrics")).text
    values = {
        (sample.name, sample.labels.get("state")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["tiller_concepts", None] == 2
    assert values["tiller_trainings_total", "ready"] == 1
    assert values["tiller_trainings_total", "failed"] == 1
    assert f'route="{PATH}/{{concept:path}}"' in text


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", PATH), ("DELETE", PATH), ("POST", f"{PATH}/a"), ("PUT", f"{PATH}/a")]
)
@prefixes
async def test_another_method_is_not_allowed(
    client: httpx.AsyncClient, prefix: str, method: str, path: str
) -> None:
    response = await client.request(method, prefix + path)
    assert_error(response, 405, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"]


async def test_a_body_of_another_content_type_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post(PATH, content=GOOD, headers={"content-type": "text/plain"})
    assert_error(response, 415, "UNSUPPORTED_MEDIA_TYPE")

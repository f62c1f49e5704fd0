"""POST /steering_concepts/{id}/read: readings of texts and of conversations."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.concepts.concept import digest_of
from app.concepts.neutral_texts import TRAINING_PROMPT
from app.errors import ApiError, EngineUnavailable, ErrorCode, InvalidRequest
from tests.app.contract.support import (
    CONCEPTS,
    JSON,
    assert_error,
    assistant,
    post,
    store_concepts,
    system,
    until,
    user,
)
from tests.app.fakes import CHAT_TEMPLATE, FakeEngine, model_info, pausing, train_badly, write_model_directory

PATH = "/steering_concepts/a/read"


async def read(client: httpx.AsyncClient, path: str = PATH, **fields: Any) -> list[dict[str, Any]]:
    response = await post(client, path, fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()["readings"]


@pytest.mark.parametrize("path", [PATH, "/v1" + PATH, "/steering_concepts/_worker/a/read"])
async def test_each_text_is_read_as_the_assistants_answer(
    client: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Any, path: str
) -> None:
    readings = await read(client, path, texts=["Hello", "日<|im_end|>"], hosting="ignored")
    [command] = engine.reads
    assert command.concept == digest_of(CONCEPTS["a"])
    assert [tiny_tokenizer.decode(text, skip_special_tokens=False) for text in command.texts] == [
        "Hello",
        "日<|im_end|>",
    ]
    assert 2 not in command.texts[1], "the name of a control token is read as text"
    prompt = f"<|im_start|>user\n{TRAINING_PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    decoded = [tiny_tokenizer.decode(prompt, skip_special_tokens=False) for prompt in command.prompts]
    assert decoded == [prompt] * 2
    for reading, text in zip(readings, command.texts, strict=True):
        numbers = [token["reading"] for token in reading["tokens"]]
        assert numbers == [token_id / 64 for token_id in text]
        assert reading["mean"] == pytest.approx(sum(numbers) / len(numbers))
    assert "".join(token["token"] for token in readings[0]["tokens"]) == "Hello"


@pytest.mark.parametrize(
    ("messages", "rendered"),
    [
        ([user("hi")], "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
        (
            [system("be"), user("hi"), assistant("yes <|im_end|>")],
            "<|im_start|>system\nbe<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
            "yes <|im_end|>",
        ),
        ([user("hi"), assistant("")], "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
async def test_all_tokens_of_a_conversation_but_the_first_are_read(
    client: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Any, messages: Any, rendered: str
) -> None:
    [reading] = await read(client, messages=messages)
    [command] = engine.reads
    [first], [text] = command.prompts, command.texts
    assert tiny_tokenizer.decode([*first, *text], skip_special_tokens=False) == rendered
    assert len(first) == 1
    assert len(reading["tokens"]) == len(text)
    assert {"token": "<|im_end|>", "reading": 2 / 64} in reading["tokens"]


async def test_the_lenient_mode_merges_messages(serve, tmp_path: Path, engine: FakeEngine) -> None:
    store_concepts(tmp_path / "data", {"a": CONCEPTS["a"]})
    strict, lenient = await serve(), await serve(api={"strict": False})
    messages = [user("a"), user("b"), assistant("c"), assistant("d")]
    assert_error(
        await post(strict, PATH, {"messages": messages}), 400, "INVALID_REQUEST", param="messages[1].role"
    )
    merged = await read(lenient, messages=messages)
    assert merged == await read(strict, messages=[user("a\n\nb"), assistant("c\n\nd")])


async def test_a_reading_waits_until_the_concept_is_trained(
    untrained: httpx.AsyncClient, engine: FakeEngine
) -> None:
    go_on = asyncio.Event()
    engine.training = pausing(go_on)
    reading = asyncio.create_task(read(untrained, texts=["x"]))
    await until(lambda: engine.in_training)
    assert engine.reads == []
    go_on.set()
    assert len(await reading) == 1


async def test_a_reading_that_is_not_finite_is_null(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def infinite(concept: str, prompts: Any, texts: list[list[int]]) -> list[list[float]]:
        return [[math.inf] * len(text) for text in texts]

    monkeypatch.setattr(engine, "read", infinite)
    [reading] = await read(client, texts=["x"])
    assert reading == {"mean": None, "tokens": [{"token": "x", "reading": None}]}


BAD_FIELDS: dict[str, tuple[dict[str, Any], str | None]] = {
    "neither": ({}, None),
    "both": ({"texts": ["a"], "messages": [user("a")]}, None),
    "null for both": ({"texts": None, "messages": None}, None),
    "no text": ({"texts": []}, "texts"),
    "a string": ({"texts": "abc"}, "texts"),
    "a number for a text": ({"texts": ["a", 5]}, "texts[1]"),
    "an empty text": ({"texts": ["a", ""]}, "texts[1]"),
    "null for a text": ({"texts": [None]}, "texts[0]"),
    "too many": ({"texts": ["a"] * 257}, "texts"),
    "far too many": ({"texts": ["a"] * 300_000}, "texts"),
    "no message": ({"messages": []}, "messages"),
    "only the assistant": ({"messages": [assistant("a")]}, "messages"),
    "only the system": ({"messages": [system("a")]}, "messages"),
    "two answers": ({"messages": [user("a"), assistant("b"), assistant("c")]}, "messages[2].role"),
    "two questions": ({"messages": [user("a"), user("b")]}, "messages[1].role"),
    "another role": ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "a model that is a number": ({"texts": ["a"], "model": 5}, "model"),
}


@pytest.mark.parametrize(("fields", "param"), list(BAD_FIELDS.values()), ids=list(BAD_FIELDS))
async def test_an_invalid_field_is_named(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any], param: str | None
) -> None:
    error = assert_error(await post(client, PATH, fields), 400, "INVALID_REQUEST")
    assert error["param"] == param
    assert engine.reads == engine.trainings == []


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"texts": ["\\ud800"]}', b'{"texts": ["\xff"]}'])
async def test_an_invalid_body_is_refused(client: httpx.AsyncClient, raw: bytes) -> None:
    assert_error(await client.post(PATH, content=raw, headers=JSON), 400, "INVALID_REQUEST")


async def test_another_content_type_is_refused(client: httpx.AsyncClient) -> None:
    content = json.dumps({"texts": ["a"]})
    response = await client.post(PATH, content=content, headers={"content-type": "text/plain"})
    assert_error(response, 415, "UNSUPPORTED_MEDIA_TYPE")


async def test_texts_beyond_the_context_are_refused(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    code = "CONTEXT_LENGTH_EXCEEDED"
    words = "maximum context length"
    assert_error(
        await post(client, PATH, {"texts": ["a", "x" * 256]}), 400, code, words, "256", param="texts[1]"
    )
    messages = [user("hi"), assistant("x" * 256)]
    assert_error(await post(client, PATH, {"messages": messages}), 400, code, words, param="messages")
    messages = [user("x" * 256)]
    assert_error(await post(client, PATH, {"messages": messages}), 400, code, words, param="messages")
    assert engine.reads == []


async def test_the_tokens_of_all_texts_are_limited(serve, tmp_path: Path) -> None:
    store_concepts(tmp_path / "data", {"a": CONCEPTS["a"]})
    client = await serve(limits={"max_concept_tokens": 60, "max_read_texts": 3})
    await read(client, texts=["x" * 30, "x" * 30])
    response = await post(client, PATH, {"texts": ["x" * 30, "x" * 31]})
    assert_error(response, 400, "INVALID_REQUEST", "60 tokens", param="texts")
    assert_error(await post(client, PATH, {"texts": ["x"] * 4}), 400, "INVALID_REQUEST", "1 to 3")


async def test_the_model_field_is_checked_if_given(client: httpx.AsyncClient) -> None:
    await read(client, texts=["a"], model="tiny")
    response = await post(client, PATH, {"texts": ["a"], "model": "other"})
    assert_error(response, 404, "UNKNOWN_MODEL", param="model")


@pytest.mark.parametrize("name", ["nobody", "_worker/nobody", "%2e%2e", "a/", "a%00", "x" * 5000])
async def test_an_unknown_concept_is_a_404(client: httpx.AsyncClient, engine: FakeEngine, name: str) -> None:
    response = await post(client, f"/steering_concepts/{name}/read", {"texts": ["a"]})
    assert_error(response, 404, "UNKNOWN_STEERING_CONCEPT")
    assert engine.reads == []


async def test_a_model_without_a_chat_template_cannot_read(
    serve, templateless: FakeEngine, tmp_path: Path
) -> None:
    store_concepts(tmp_path / "data", {"a": CONCEPTS["a"]})
    client = await serve(templateless)
    for fields in ({"texts": ["a"]}, {"messages": [user("a")]}):
        assert_error(await post(client, PATH, fields), 400, "MISSING_CAPABILITY", param="model")


async def test_messages_that_the_chat_template_refuses_are_named(serve, tmp_path: Path) -> None:
    store_concepts(tmp_path / "data", {"a": CONCEPTS["a"]})
    demand = "{% if 'no' in messages[0].content %}{{ raise_exception('no such thing') }}{% endif %}"
    tokenizer = write_model_directory(tmp_path, demand + CHAT_TEMPLATE)
    client = await serve(FakeEngine(model_info(tmp_path, tokenizer.get_vocab_size())))
    response = await post(client, PATH, {"messages": [user("no")]})
    assert_error(response, 400, "INVALID_REQUEST", "no such thing", param="messages")


async def test_a_concept_that_the_model_cannot_use_is_a_400(
    untrained: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.training = train_badly
    response = await post(untrained, PATH, {"texts": ["a"]})
    assert_error(response, 400, "INVALID_REQUEST", "_worker/a cannot be used", "differ in nothing")


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (EngineUnavailable(), 503, "UNAVAILABLE"),
        (InvalidRequest("the worker cannot read so many tokens"), 400, "INVALID_REQUEST"),
        (RuntimeError("/srv/secret"), 500, "INTERNAL"),
    ],
)
async def test_a_failure_of_the_engine_is_reported(
    client: httpx.AsyncClient, engine: FakeEngine, refusal: Exception, status: int, code: str
) -> None:
    engine.question_refusal = refusal
    response = await post(client, PATH, {"texts": ["a"]})
    assert_error(response, status, code)
    assert "secret" not in response.text
    engine.question_refusal = None
    await read(client, texts=["a"])


async def test_a_concept_that_the_engine_lost_is_trained_again_for_the_next_reading(
    untrained: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await read(untrained, texts=["a"])
    await asyncio.sleep(0.01)
    engine.question_refusal = ApiError(ErrorCode.UNKNOWN_STEERING_CONCEPT, "no such steering concept: 5f")
    response = await post(untrained, PATH, {"texts": ["a"]})
    assert_error(response, 503, "UNAVAILABLE", "trained again")
    engine.question_refusal = None
    await read(untrained, texts=["a"])
    assert len(engine.trainings) == 2


async def test_a_concept_that_is_deleted_meanwhile_is_a_404(
    untrained: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def delete_first(concept: str, prompts: Any, texts: Any) -> list[list[float]]:
        await untrained.delete("/steering_concepts/a")
        raise ApiError(ErrorCode.UNKNOWN_STEERING_CONCEPT, "no such steering concept")

    monkeypatch.setattr(engine, "read", delete_first)
    response = await post(untrained, PATH, {"texts": ["a"]})
    assert_error(response, 404, "UNKNOWN_STEERING_CONCEPT", "_worker/a")


async def test_other_methods_are_not_allowed(client: httpx.AsyncClient) -> None:
    for method in ("PUT", "PATCH"):
        response = await client.request(method, PATH)
        assert_error(response, 405, "METHOD_NOT_ALLOWED")
        assert response.headers["allow"] == "POST, OPTIONS"

"""Overload and limits: which requests are refused and how, and that all others are served as usual."""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from app.errors import EngineUnavailable
from app.main import create_app
from app.settings import Settings
from inference.interface.requests import GenerationRequest
from tests.app.contract.conftest import client_of
from tests.app.contract.support import (
    CHAT,
    JSON,
    assert_error,
    body,
    chat,
    completion,
    content_of,
    event_payloads,
    post,
    post_scope,
    steps,
    stream,
    until,
    user,
    was_aborted,
)
from tests.app.fakes import HANG, FakeEngine, Script, Step, pausing

TOKEN, OTHER = "tiller-first", "tiller-second"
Spell = Callable[[str], list[int]]

streamed_or_not = pytest.mark.parametrize("streamed", [False, True])


def configured(*tokens: str, **limits: int) -> dict[str, Any]:
    return {
        "tokens": [
            {"name": token, "sha256": hashlib.sha256(token.encode()).hexdigest(), **limits}
            for token in tokens
        ]
    }


async def ask(client: httpx.AsyncClient, token: str, nice: bool = False, **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"}
    return await client.post(CHAT, params={"nice": nice}, json=body(**fields), headers=headers)


def say_max_tokens(spell: Spell) -> Script:
    """A script whose answer to each request is that request's max_tokens."""

    def script(request: GenerationRequest) -> list[Step]:
        return list(steps(spell(str(request.max_tokens)))(request))

    return script


@streamed_or_not
async def test_under_tenfold_overload_exactly_as_many_requests_as_fit_are_served(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, streamed: bool
) -> None:
    engine.free_capacity = room = 8
    engine.start = asyncio.get_running_loop().create_future()
    engine.script = say_max_tokens(spell)
    numbers = range(1, 10 * room + 1)
    chatting = {n: asyncio.create_task(chat(client, max_tokens=n, stream=streamed)) for n in numbers}
    await until(lambda: sum(task.done() for task in chatting.values()) >= 9 * room)
    assert (await client.get("/health")).status_code == 200
    engine.start.set_result(None)
    answers = {n: await task for n, task in chatting.items()}
    served = {n: answer for n, answer in answers.items() if answer.status_code == 200}
    assert len(served) == len(engine.requests) == room
    for n, answer in answers.items():
        if n in served:
            assert text_of(answer, streamed) == str(n)
        else:
            assert_error(answer, 503, "QUEUE_FULL")
            assert int(answer.headers["retry-after"]) >= 1
    assert engine.free_capacity == room
    assert (await completion(client))["choices"]


def text_of(answer: httpx.Response, streamed: bool) -> str:
    if not streamed:
        return answer.json()["choices"][0]["message"]["content"]
    chunks = [httpx.Response(200, text=payload).json() for payload in event_payloads(answer.content)[:-1]]
    return content_of(chunks)


async def test_every_choice_needs_a_slot(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.free_capacity = 3
    assert_error(await chat(client, n=4), 503, "QUEUE_FULL")
    assert (await chat(client, n=3)).status_code == 200
    assert engine.free_capacity == 3


async def test_more_choices_than_ever_fit_are_the_callers_mistake(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.capacity = engine.free_capacity = 3
    answer = await chat(client, n=4)
    assert_error(answer, 400, "INVALID_REQUEST")
    assert answer.json()["error"]["param"] == "n"
    assert answer.json()["error"]["message"] == "n must be at most 3 for this model"
    assert engine.free_capacity == 3
    assert (await chat(client, n=3)).status_code == 200


@pytest.mark.parametrize("fields", [{"temperature": 3}, {"logit_bias": {"300": 1}}, {"max_tokens": 10**6}])
async def test_a_refused_request_releases_its_slot(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    engine.free_capacity = 1
    for _ in range(3):
        assert (await chat(client, **fields)).status_code == 400
    assert (await chat(client)).status_code == 200


async def test_a_full_queue_is_reported_before_the_body_is_read(
    shared: tuple[FakeEngine, FastAPI], engine: FakeEngine
) -> None:
    engine.free_capacity = 0
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        pytest.fail("the body was read")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await shared[1](post_scope(CHAT), receive, send)
    assert sent[0]["status"] == 503


async def test_refusals_are_counted_under_the_chat_route(serve, engine: FakeEngine) -> None:
    client = await serve()
    engine.free_capacity = 0
    for prefix in ("", "/v1"):
        assert_error(await post(client, prefix + CHAT, body()), 503, "QUEUE_FULL")
    assert (await client.get(CHAT)).status_code == 405
    metrics = (await client.get("/metrics")).text
    assert 'tiller_requests_total{route="/chat/completions",status="503"} 2.0' in metrics


async def test_a_full_queue_is_reported_before_the_prompt_is_rendered(
    shared: tuple[FakeEngine, FastAPI],
    client: httpx.AsyncClient,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = shared[1].state.gateway.models.loaded[0].prompts
    monkeypatch.setattr(prompts, "render", lambda messages: pytest.fail("rendered"))
    engine.free_capacity = 1
    assert_error(await chat(client, n=2), 503, "QUEUE_FULL")


@streamed_or_not
async def test_a_request_that_waits_too_long_gets_a_503(serve, engine: FakeEngine, streamed: bool) -> None:
    client = await serve(limits={"max_wait_seconds": 0.05})
    engine.start = asyncio.get_running_loop().create_future()
    answer = await chat(client, stream=streamed)
    assert_error(answer, 503, "QUEUE_FULL", "0.05 seconds")
    assert "retry-after" in answer.headers
    assert was_aborted(engine, engine.requests[0])
    assert engine.free_capacity == FakeEngine.free_capacity
    engine.start.set_result(None)
    assert (await chat(client, stream=streamed)).status_code == 200


@streamed_or_not
async def test_a_failure_before_the_first_token_has_its_own_status(
    client: httpx.AsyncClient, engine: FakeEngine, streamed: bool
) -> None:
    engine.start = asyncio.get_running_loop().create_future()
    chatting = asyncio.create_task(chat(client, stream=streamed))
    await until(lambda: engine.requests)
    engine.start.set_exception(EngineUnavailable())
    answer = await chatting
    assert_error(answer, 503, "UNAVAILABLE")
    assert "retry-after" in answer.headers
    assert engine.free_capacity == FakeEngine.free_capacity


async def test_the_wait_limit_does_not_apply_after_the_first_token(
    serve, engine: FakeEngine, spell: Spell
) -> None:
    client = await serve(limits={"max_wait_seconds": 0.05})
    engine.script = steps(spell("slow"), HANG)
    chatting = asyncio.create_task(chat(client))
    await asyncio.sleep(0.15)
    assert not chatting.done()
    chatting.cancel()


async def test_too_many_biases_are_refused(serve, engine: FakeEngine) -> None:
    client = await serve(limits={"max_logit_bias": 2})
    answer = await chat(client, logit_bias={"1": 1, "2": 1, "3": 1})
    assert_error(answer, 400, "INVALID_REQUEST", "at most 2", "3", param="logit_bias")
    assert (await chat(client, logit_bias={"1": 1, "2": 1})).status_code == 200


async def test_an_access_token_has_a_limit_of_concurrent_requests(
    serve, engine: FakeEngine, spell: Spell
) -> None:
    client = await serve(auth=configured(TOKEN, OTHER, max_requests=2))
    engine.start = asyncio.get_running_loop().create_future()
    waiting = [asyncio.create_task(ask(client, TOKEN, stream=streamed)) for streamed in (True, False)]
    await until(lambda: len(engine.requests) == 2)
    answer = await ask(client, TOKEN)
    assert_error(answer, 429, "RATE_LIMITED", "2 requests")
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["type"] == "rate_limit_error"
    others = [asyncio.create_task(ask(client, *who)) for who in ((OTHER, False), (TOKEN, True))]
    await until(lambda: len(engine.requests) == 4)
    engine.start.set_result(None)
    assert [(await task).status_code for task in (*waiting, *others)] == [200] * 4
    assert (await ask(client, TOKEN)).status_code == 200


async def test_a_concept_creation_counts_as_a_request_of_its_access_token(serve, engine: FakeEngine) -> None:
    client = await serve(auth=configured(TOKEN, OTHER, max_requests=1))
    go_on = asyncio.Event()
    engine.training = pausing(go_on)

    async def create(token: str, text: str) -> httpx.Response:
        new = {"examples": [{"positive": text, "negative": "no"}]}
        return await client.post("/steering_concepts", json=new, headers={"authorization": f"Bearer {token}"})

    creating = asyncio.create_task(create(TOKEN, "one"))
    await until(lambda: engine.in_training)
    for refused in (await create(TOKEN, "two"), await ask(client, TOKEN)):
        assert_error(refused, 429, "RATE_LIMITED", "1 requests")
        assert refused.headers["retry-after"] == "1"
    assert (await ask(client, OTHER)).status_code == 200
    assert (await ask(client, TOKEN, nice=True)).status_code == 200
    go_on.set()
    assert (await creating).status_code == 201
    assert (await create(TOKEN, "two")).status_code == 201
    assert (await create(TOKEN, "")).status_code == 400
    assert (await ask(client, TOKEN)).status_code == 200


async def test_without_access_tokens_all_callers_share_one_limit(serve, engine: FakeEngine) -> None:
    client = await serve(limits={"max_requests": 1})
    engine.start = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(chat(client))
    await until(lambda: engine.requests)
    assert_error(await chat(client), 429, "RATE_LIMITED")
    engine.start.set_result(None)
    assert (await waiting).status_code == 200


@streamed_or_not
async def test_an_access_token_has_a_limit_of_tokens_per_minute(
    serve, engine: FakeEngine, spell: Spell, streamed: bool
) -> None:
    client = await serve(auth=configured(TOKEN, OTHER, tokens_per_minute=100))
    engine.script = steps(spell("x" * 20))
    fields: dict[str, Any] = {"max_tokens": 50, "stream": streamed}
    first = await ask(client, TOKEN, **fields)
    assert first.status_code == 200
    prompt = len(engine.requests[0].prompt_token_ids)
    left = 100 - prompt - 20
    assert 0 < left < prompt + 50
    refused = await ask(client, TOKEN, **fields)
    assert_error(refused, 429, "RATE_LIMITED", "100 tokens per minute")
    missing = prompt + 50 - left
    assert missing * 0.6 - 2 <= int(refused.headers["retry-after"]) <= missing * 0.6 + 1
    assert len(engine.requests) == 1
    assert (await ask(client, OTHER, **fields)).status_code == 200
    assert (await ask(client, TOKEN, nice=True, **fields)).status_code == 200


async def test_a_huge_max_tokens_is_refused_by_the_context_limit(serve) -> None:
    client = await serve(limits={"tokens_per_minute": 100})
    for _ in range(2):
        assert_error(await chat(client, max_tokens=10**400), 400, "CONTEXT_LENGTH_EXCEEDED")
    assert (await chat(client, max_tokens=1)).status_code == 200


async def test_a_rate_limited_request_gets_the_same_error_streamed_or_not(serve, engine: FakeEngine) -> None:
    client = await serve(auth=configured(TOKEN, tokens_per_minute=10))
    assert (await ask(client, TOKEN, max_tokens=5)).status_code == 200
    answers = [await ask(client, TOKEN, max_tokens=5, stream=streamed) for streamed in (True, False)]
    for answer in answers:
        assert_error(answer, 429, "RATE_LIMITED")


async def test_other_routes_have_no_limits(serve, engine: FakeEngine) -> None:
    client = await serve(auth=configured(TOKEN, max_requests=1, tokens_per_minute=1))
    headers = {"authorization": f"Bearer {TOKEN}"}
    engine.start = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(ask(client, TOKEN, max_tokens=1))
    await until(lambda: engine.requests)
    for path in ("/models", "/metrics", "/steering_concepts"):
        assert (await client.get(path, headers=headers)).status_code == 200
    engine.start.set_result(None)
    assert (await waiting).status_code == 200


async def test_a_client_that_disconnects_releases_everything_it_reserved(
    engine: FakeEngine, tmp_path: Any, spell: Spell
) -> None:
    """The client disconnects like with an ASGI server: a disconnect message after the body."""
    limits = {"max_requests": 1, "tokens_per_minute": 60}
    settings = Settings(model={"name": "tiny"}, data_directory=str(tmp_path), limits=limits)
    app = create_app(settings, {"tiny": engine})
    engine.start = asyncio.get_running_loop().create_future()
    gone = asyncio.Event()
    messages = [{"type": "http.request", "body": httpx.Request("POST", "/", json=body(max_tokens=5)).content}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        pass

    chatting = asyncio.create_task(app(post_scope(CHAT, JSON), receive, send))
    await until(lambda: engine.requests)
    async with client_of(app) as client:
        assert_error(await chat(client), 429, "RATE_LIMITED")
        gone.set()
        await chatting
        engine.start = None
        assert was_aborted(engine, engine.requests[0])
        assert engine.free_capacity == FakeEngine.free_capacity
        assert (await post(client, CHAT, body(messages=[user("hi")], max_tokens=5))).status_code == 200
        assert await stream(client, max_tokens=5)

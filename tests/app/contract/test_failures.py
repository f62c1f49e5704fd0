"""Requests that the engine refuses, and requests that fail in it, before and after the first byte."""

import json
import logging
import re
from collections.abc import Callable

import httpx
import pytest

from app.errors import ApiError, EngineUnavailable, ErrorCode, InternalError
from app.text.stop_filter import StopFilter
from tests.app.contract.support import (
    assert_error,
    assert_error_payload,
    chat,
    content_of,
    event_payloads,
    steps,
    was_aborted,
)
from tests.app.fakes import HANG, FakeEngine

Spell = Callable[[str | bytes], list[int]]
REFUSALS = [
    ("CONTEXT_LENGTH_EXCEEDED", 400),
    ("UNKNOWN_STEERING_CONCEPT", 404),
    ("QUEUE_FULL", 503),
    ("UNAVAILABLE", 503),
    ("INTERNAL", 500),
]
FAILURES = [(EngineUnavailable(), "UNAVAILABLE", 503), (InternalError(), "INTERNAL", 500)]


def secret_fault() -> Exception:
    return RuntimeError("CUDA error in /srv/secret/worker.py at 0x7ffd1234")


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(("code", "status"), REFUSALS)
async def test_an_engines_refusal_has_its_own_status(
    client: httpx.AsyncClient, engine: FakeEngine, code: str, status: int, streamed: bool
) -> None:
    engine.refusal = ApiError(ErrorCode(code), "the engine refuses it")
    response = await chat(client, stream=streamed)
    assert_error(response, status, code)
    assert len(engine.requests) == 1


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("code", ["QUEUE_FULL", "UNAVAILABLE"])
async def test_a_temporary_refusal_has_retry_after(
    client: httpx.AsyncClient, engine: FakeEngine, code: str, streamed: bool
) -> None:
    engine.refusal = ApiError(ErrorCode(code), "not now")
    response = await chat(client, stream=streamed)
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("tokens", ["", "xyz"])
@pytest.mark.parametrize(("failure", "code", "status"), FAILURES)
async def test_an_unstreamed_answer_that_fails_has_its_own_status(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    spell: Spell,
    failure: Exception,
    code: str,
    status: int,
    tokens: str,
) -> None:
    engine.script = steps(spell(tokens), failure)
    response = await chat(client)
    assert_error(response, status, code)
    assert "xyz" not in response.text  # letters that no request id has


async def test_an_engine_lost_during_an_answer_has_retry_after(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(spell("a"), EngineUnavailable())
    assert int((await chat(client)).headers["retry-after"]) >= 1


@pytest.mark.parametrize(("failure", "code", "status"), [*FAILURES, (secret_fault(), "INTERNAL", 500)])
async def test_a_stream_that_fails_ends_with_one_error_event(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, failure: Exception, code: str, status: int
) -> None:
    engine.script = steps(spell("ab"), spell("c"), failure)
    response = await chat(client, stream=True, stream_options={"include_usage": True})
    assert response.status_code == 200
    *payloads, last = event_payloads(response.content)
    assert_error_payload(last.encode(), code)
    chunks = [json.loads(payload) for payload in payloads]
    assert not any("error" in chunk for chunk in chunks)
    assert content_of(chunks) == "abc"
    assert all(choice["finish_reason"] is None for chunk in chunks for choice in chunk["choices"])
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_a_stream_that_fails_does_not_send_done(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(spell("a"), InternalError())
    assert b"[DONE]" not in (await chat(client, stream=True)).content


@pytest.mark.parametrize(("failure", "code", "status"), FAILURES)
async def test_a_stream_that_fails_before_its_first_token_has_a_status_or_an_error_event(
    client: httpx.AsyncClient, engine: FakeEngine, failure: Exception, code: str, status: int
) -> None:
    engine.script = steps(failure)
    response = await chat(client, stream=True)
    if response.status_code != 200:
        assert_error(response, status, code)
        return
    assert b"[DONE]" not in response.content
    assert_error_payload(event_payloads(response.content)[-1].encode(), code)


async def test_a_failure_in_one_choice_ends_the_whole_stream(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    first = steps(spell("a"), index=0)
    engine.script = lambda request: [*first(request), InternalError()]
    response = await chat(client, stream=True, n=2)
    assert_error_payload(event_payloads(response.content)[-1].encode(), "INTERNAL")


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_bug_before_the_first_byte_is_internal_and_leaks_nothing(
    client: httpx.AsyncClient, engine: FakeEngine, streamed: bool
) -> None:
    engine.refusal = secret_fault()
    response = await chat(client, stream=streamed)
    assert_error(response, 500, "INTERNAL")
    assert "secret" not in response.text
    assert "CUDA" not in response.text


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_bug_during_an_answer_is_internal_and_leaks_nothing(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, streamed: bool
) -> None:
    engine.script = steps(spell("a"), secret_fault())
    response = await chat(client, stream=streamed)
    payload = event_payloads(response.content)[-1].encode() if streamed else response.content
    assert_error_payload(payload, "INTERNAL")
    assert "secret" not in response.text
    assert "CUDA" not in response.text


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_bug_in_detokenization_ends_only_its_own_request(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    spell: Spell,
    monkeypatch: pytest.MonkeyPatch,
    streamed: bool,
) -> None:
    engine.script = steps(spell("ab"), HANG)

    def fail(self: StopFilter, text: str) -> str:
        raise secret_fault()

    with monkeypatch.context() as patch:
        patch.setattr(StopFilter, "push", fail)
        response = await chat(client, stream=streamed)
    payload = event_payloads(response.content)[-1].encode() if streamed else response.content
    assert_error_payload(payload, "INTERNAL")
    assert "secret" not in response.text
    assert was_aborted(engine, engine.requests[-1])
    assert engine.free_capacity == FakeEngine.free_capacity
    engine.script = steps(spell("a"))
    assert (await chat(client)).status_code == 200


@pytest.mark.parametrize("when", ["before", "while"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_an_internal_error_names_the_request_id_that_is_in_the_log(
    client: httpx.AsyncClient,
    engine: FakeEngine,
    spell: Spell,
    caplog: pytest.LogCaptureFixture,
    streamed: bool,
    when: str,
) -> None:
    engine.refusal = secret_fault() if when == "before" else None
    engine.script = steps(spell("a"), secret_fault())
    with caplog.at_level(logging.ERROR):
        response = await chat(client, stream=streamed)
    raw = (
        event_payloads(response.content)[-1].encode()
        if "event" in response.headers["content-type"]
        else response.content
    )
    message = assert_error_payload(raw, "INTERNAL")["message"]
    named = [word for word in re.findall(r"[\w-]{8,}", message) if any(map(str.isdigit, word))]
    assert named, message
    assert any(word in caplog.text for word in named)
    assert "CUDA error" in caplog.text


async def test_the_server_serves_the_next_request_after_a_bug(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(spell("a"), secret_fault())
    assert (await chat(client)).status_code == 500
    engine.script = steps(spell("a"))
    assert (await chat(client)).status_code == 200

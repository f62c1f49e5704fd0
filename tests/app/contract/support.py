"""Helpers for the contract tests: requests, scripts for the fake engine, and strict readers of responses."""

import asyncio
import json
import string
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx

from app.concepts.concept import Concept, Example, digest_of
from app.concepts.store import ConceptStore
from app.schemas.concepts import full_id
from inference.interface.requests import FinishReason, GenerationRequest, TokenEvent, TokenLogprobs
from tests.app.fakes import END_OF_TURN, FakeEngine, Script, Step, readings_of

CHAT = "/chat/completions"
JSON = {"content-type": "application/json"}
LEAKS = ("Traceback", "site-packages", ".py", "/work", "/tmp", "object at 0x", "pydantic", "\n  File")
LONGEST_NAME = (string.ascii_letters + string.digits + "-_")[:64]


def pairs(*texts: str) -> tuple[Example, ...]:
    """Examples with these texts as positives."""
    return tuple(Example(text, f"no {text}") for text in texts)


HASHED_NAME = digest_of(pairs("made from its examples"))
CONCEPTS = {
    name: pairs(f"as {name} as can be")
    for name in ("a", "b", "c", "good", "A-b_9", "-", "_", "0", "_worker", LONGEST_NAME)
} | {
    HASHED_NAME: pairs("made from its examples"),
    "same-as-a": pairs("as a as can be"),
    "waited-for": pairs("wait"),
}
"""The shared gateways' concepts: names without the prefix, and their examples."""


def store_concepts(data_directory: Path, concepts: Mapping[str, tuple[Example, ...]]) -> None:
    """Stores the concepts like a gateway with this data directory."""
    store = ConceptStore(data_directory / "none", data_directory / "concepts")
    for name, examples in concepts.items():
        store.write(Concept(full_id(name), "", examples, created=1))


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def body(**fields: Any) -> dict[str, Any]:
    """The smallest chat request, plus these fields."""
    return {"model": "tiny", "messages": [user("hi")], **fields}


async def post(client: httpx.AsyncClient, path: str, payload: Any) -> httpx.Response:
    """Unlike httpx's own `json=`, this also sends NaN, Infinity and lone surrogates, as Python clients do."""
    return await client.post(path, content=json.dumps(payload), headers=JSON)


async def chat(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await post(client, CHAT, body(**fields))


async def chat_with_literal(
    client: httpx.AsyncClient, field: str, literal: str, **fields: Any
) -> httpx.Response:
    """Sends a chat request with the raw JSON text `literal` as the value of `field`, valid or not."""
    start = json.dumps(body(**fields)).removesuffix("}")
    return await client.post(CHAT, content=f'{start}, "{field}": {literal}}}', headers=JSON)


async def completion(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await chat(client, **fields)
    assert response.status_code == 200, response.text[:2000]
    assert response.headers["content-type"].startswith("application/json")
    return response.json()


async def sent(client: httpx.AsyncClient, engine: FakeEngine, **fields: Any) -> GenerationRequest:
    """The request that reaches the engine when a client sends these fields."""
    before = len(engine.requests)
    await completion(client, **fields)
    assert len(engine.requests) == before + 1
    return engine.requests[-1]


async def stream(client: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a stream. Fails if it does not end with `[DONE]`."""
    response = await chat(client, stream=True, **fields)
    assert response.status_code == 200, response.text[:2000]
    assert response.headers["content-type"].startswith("text/event-stream")
    payloads = event_payloads(response.content)
    assert payloads[-1] == "[DONE]"
    return [json.loads(payload) for payload in payloads[:-1]]


def event_payloads(raw: bytes) -> list[str]:
    """The events' data. Checks that each event is exactly one `data: ` line and an empty line."""
    blocks = raw.decode().split("\n\n")
    assert blocks.pop() == "", raw[-200:]
    for block in blocks:
        assert block.startswith("data: "), block[:200]
        assert "\n" not in block, block[:200]
        assert "\r" not in block, block[:200]
    return [block.removeprefix("data: ") for block in blocks]


def choice_chunks(chunks: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    """One choice's entries in the chunks."""
    return [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]


def content_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(choice["delta"].get("content", "") for choice in choice_chunks(chunks, index))


def entries_of(chunks: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    logprobs = [choice["logprobs"] for choice in choice_chunks(chunks, index) if choice.get("logprobs")]
    return [entry for part in logprobs for entry in part["content"]]


def readings_in(chunks: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    parts = [
        part["steering_readings"] for part in choice_chunks(chunks, index) if "steering_readings" in part
    ]
    return [entry for part in parts for entry in part["content"]]


def finish_of(chunks: list[dict[str, Any]], index: int = 0) -> str | None:
    return choice_chunks(chunks, index)[-1]["finish_reason"]


def assert_error(
    response: httpx.Response, status: int, code: str, *words: str, param: str | None = None
) -> dict[str, Any]:
    """Checks that the response is an error as in the contract, whose message has `words`. Returns it."""
    assert response.status_code == status, response.text[:1000]
    assert response.headers["content-type"].startswith("application/json")
    return assert_error_payload(response.content, code, *words, param=param)


def assert_error_payload(raw: bytes, code: str, *words: str, param: str | None = None) -> dict[str, Any]:
    assert len(raw) < 4096
    payload = json.loads(raw)
    assert payload.keys() == {"error", "code"}
    error = payload["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert payload["code"] == error["code"] == code
    assert isinstance(error["type"], str)
    assert error["type"]
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["message"].strip()
    for leak in LEAKS:
        assert leak not in raw.decode()
    for word in words:
        assert word in error["message"], error["message"]
    if param is not None:
        assert error["param"] == param
    return error


def steps(*script: Iterable[int] | Step, finish: FinishReason = FinishReason.STOP, index: int = 0) -> Script:
    """One choice's script. Each list of token ids is one engine step; other steps are played as given.

    With STOP, an extra step ends the choice with the end-of-turn token. With LENGTH, the last token ends it.
    """

    def play(request: GenerationRequest) -> Iterable[Step]:
        last = len(script) - 1
        for position, step in enumerate(script):
            if isinstance(step, list | tuple):
                ends = position == last and finish is FinishReason.LENGTH
                yield events(request, step, index, FinishReason.LENGTH if ends else None)
            else:
                yield step
        if finish is FinishReason.STOP:
            yield events(request, [END_OF_TURN], index, FinishReason.STOP)

    return play


def events(
    request: GenerationRequest, token_ids: Iterable[int], index: int = 0, finish: FinishReason | None = None
) -> list[TokenEvent]:
    """One step's events for a choice. The last has `finish`.

    Log probabilities and readings differ for each token.
    """
    ids = list(token_ids)
    count = request.sampling.top_logprobs
    return [
        TokenEvent(
            request.request_id,
            index,
            token_id,
            finish if position == len(ids) - 1 else None,
            None if count is None else logprobs_of(token_id, count),
            readings_of(request, token_id, finish if position == len(ids) - 1 else None),
        )
        for position, token_id in enumerate(ids)
    ]


def logprobs_of(token_id: int, count: int) -> TokenLogprobs:
    return TokenLogprobs(-token_id / 64, [((token_id + rank) % 259, -rank / 4) for rank in range(count)])


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Waits until the condition, which another task fulfils, is true. Fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def was_aborted(engine: FakeEngine, request: GenerationRequest) -> bool:
    """Whether all choices of the request were aborted."""
    ended = {index for request_id, index in engine.aborts if request_id == request.request_id}
    return None in ended or ended >= set(range(request.n))


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    """A request body without a Content-Length."""
    for part in parts:
        yield part


def post_scope(path: str, headers: dict[str, str] = JSON) -> dict[str, Any]:
    """The ASGI scope of a POST request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }

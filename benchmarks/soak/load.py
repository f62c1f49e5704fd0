"""Clients that send one request after the other, and the outcome of each request."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import httpx

from app.bench.client import BenchError, Target, connect
from benchmarks.soak.mix import Ask

_CHAT = "/v1/chat/completions"
_CONCEPTS = "/v1/steering_concepts"
_DONE = b"data: [DONE]\n\n"
_SHOWN = 300  # characters of an error

LEFT = "left"


@dataclass(frozen=True)
class Outcome:
    kind: str
    status: str
    """The HTTP status, LEFT if the client disconnected on purpose, or `lost` if there was no answer."""
    problem: str | None = None
    """Why the request did not end as expected."""


async def run(target: Target, asks: Iterator[Ask], concurrency: int, seconds: float) -> list[Outcome]:
    """Runs `concurrency` clients for `seconds`. Each then waits for its last answer."""
    deadline = time.monotonic() + seconds
    outcomes: list[Outcome] = []

    async def ask_on(client: httpx.AsyncClient) -> None:
        while time.monotonic() < deadline:
            outcomes.append(await send(client, next(asks)))

    async with connect(target) as client:
        await asyncio.gather(*(ask_on(client) for _ in range(concurrency)))
    return outcomes


async def run_once(target: Target, asks: Iterable[Ask]) -> list[Outcome]:
    """Sends the requests one after the other."""
    async with connect(target) as client:
        return [await send(client, ask) for ask in asks]


async def list_concepts(target: Target) -> list[str]:
    """The ids of the steering concepts that the server lists. Raises BenchError."""
    try:
        async with connect(target) as client:
            answer = await client.get(_CONCEPTS)
            answer.raise_for_status()
            return [str(concept["id"]) for concept in answer.json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{target.name} does not list its steering concepts: {error}") from None


async def send(client: httpx.AsyncClient, ask: Ask) -> Outcome:
    try:
        return await (_stream(client, ask) if ask.streamed else _wait(client, ask))
    except httpx.HTTPError as error:
        return Outcome(ask.kind, "lost", f"{type(error).__name__}: {error}"[:_SHOWN])


async def _wait(client: httpx.AsyncClient, ask: Ask) -> Outcome:
    try:
        async with asyncio.timeout(ask.leaves_after):
            answer = await client.post(_CHAT, json=ask.body)
    except TimeoutError:
        return Outcome(ask.kind, LEFT)
    return _judge(ask, answer.status_code, answer.content)


async def _stream(client: httpx.AsyncClient, ask: Ask) -> Outcome:
    pieces: list[bytes] = []
    async with client.stream("POST", _CHAT, json=ask.body) as answer:
        async for piece in answer.aiter_raw():
            pieces.append(piece)
            if ask.leaves_after is not None and len(pieces) >= ask.leaves_after:
                return Outcome(ask.kind, LEFT)
    content = b"".join(pieces)
    if answer.is_success and not content.endswith(_DONE):
        return Outcome(ask.kind, str(answer.status_code), f"the stream ends with {_show(content[-_SHOWN:])}")
    return _judge(ask, answer.status_code, content)


def _judge(ask: Ask, status: int, content: bytes) -> Outcome:
    problem = None if status == ask.status else f"{status} instead of {ask.status}: {_show(content)}"
    return Outcome(ask.kind, str(status), problem)


def _show(content: bytes) -> str:
    return " ".join(content.decode(errors="replace").split())[:_SHOWN]

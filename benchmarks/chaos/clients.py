"""Clients that know the right answers, and count how their requests end."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import httpx

_CHAT = "/v1/chat/completions"
_PATIENCE_SECONDS = 180.0
_PAUSE_SECONDS = 0.5
"""Pause after a failed request. Replaces the pause that Retry-After asks for."""
_LEAVES_AFTER_SECONDS = 2.0  # at most
_SHOWN = 5  # problems


class Fate(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    FAILED = "failed with an error code"
    LEFT = "abandoned by the client"
    LOST = "lost"
    """No answer, half an answer, or an error without a code."""
    WRONG = "wrong"
    """Not the answer that the request got without other load."""


@dataclass
class Tally:
    fates: Counter[Fate] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    """Descriptions of the first lost and wrong answers."""

    def count(self, fate: Fate, detail: str = "") -> None:
        self.fates[fate] += 1
        if fate is Fate.FAILED:
            self.codes[detail] += 1
        elif fate in (Fate.LOST, Fate.WRONG) and len(self.problems) < _SHOWN:
            self.problems.append(f"{fate}: {detail}")


@dataclass(frozen=True)
class Question:
    """A request whose answer is always the same, and this answer."""

    body: dict[str, Any]
    answer: str


class RefusedError(Exception):
    """The server answered with an error. The message holds the error code."""


class LostError(Exception):
    """The server sent neither a whole answer nor an error with a code."""


async def ask(client: httpx.AsyncClient, body: dict[str, Any], streamed: bool = False) -> str:
    """The answer's text. Raises RefusedError and LostError."""
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            answer = await client.post(_CHAT, json={**body, "stream": streamed}, timeout=None)
    except TimeoutError:
        raise LostError(f"no answer in {_PATIENCE_SECONDS:g} seconds") from None
    except httpx.HTTPError as error:
        raise LostError(repr(error)) from None
    if streamed and answer.is_success:
        return _read_stream(answer.text)
    try:
        content = answer.json()
        if answer.is_success:
            return str(content["choices"][0]["message"]["content"])
        raise RefusedError(f"{answer.status_code} {content['code']}")
    except (ValueError, KeyError, IndexError, TypeError):
        raise LostError(f"{answer.status_code}: {answer.text[:200]}") from None


def _read_stream(text: str) -> str:
    *events, last = [line.removeprefix("data: ") for line in text.split("\n\n") if line] or [""]
    try:
        chunks = [json.loads(event) for event in events]
        if last == "[DONE]":
            return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        raise RefusedError(f"in the stream: {json.loads(last)['code']}")
    except (ValueError, KeyError, IndexError, TypeError):
        raise LostError(f"the stream ends with {text[-200:]!r}") from None


async def ask_on(
    client: httpx.AsyncClient,
    questions: Sequence[Question],
    until: float,
    rng: random.Random,
    tally: Tally,
    streamed: float = 0.5,
    leaving: float = 0.15,
) -> None:
    """Sends one request after the other. `until`: a time of time.monotonic().

    `streamed`, `leaving`: shares of the requests that are streamed, and that the client leaves early.
    """
    while time.monotonic() < until:
        question = rng.choice(questions)
        asking = asyncio.ensure_future(ask(client, question.body, rng.random() < streamed))
        if rng.random() < leaving:
            await asyncio.wait([asking], timeout=rng.uniform(0, _LEAVES_AFTER_SECONDS))
            if asking.cancel():
                tally.count(Fate.LEFT)
                continue
        try:
            answer = await asking
        except RefusedError as error:
            tally.count(Fate.FAILED, str(error))
            await asyncio.sleep(_PAUSE_SECONDS)
        except LostError as error:
            tally.count(Fate.LOST, str(error))
        else:
            right = answer == question.answer
            tally.count(Fate.FINISHED if right else Fate.WRONG, f"{answer!r} instead of {question.answer!r}")

"""What one request's client saw: read from the bytes of its stream, after they were all stamped.

While servers are measured nothing is decoded: their clients share the machine with them.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Pieces = Iterable[tuple[float, bytes]]
"""A response's body as it came: seconds after the request was sent, and bytes."""

_DATA = "data:"
_DONE = "[DONE]"


@dataclass(frozen=True)
class Record:
    """One request that was answered well, or an `error` that says why it was not."""

    arrivals: tuple[float, ...] = ()
    """When each chunk with text came, in seconds after the request was sent."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None

    @property
    def time_to_first_token(self) -> float:
        return self.arrivals[0]

    @property
    def inter_token_latencies(self) -> list[float]:
        """Between chunks with text, which is between tokens where each has a chunk of its own."""
        return [later - earlier for earlier, later in pairwise(self.arrivals)]


def read_stream(pieces: Pieces) -> Record:
    """The record of a stream of chat completion chunks.

    Servers differ: the first chunk may hold a role and no text; `usage` may be null, missing, in a chunk of
    its own without choices, or in the last one with a choice.
    """
    arrivals: list[float] = []
    usage: dict[str, Any] | None = None
    try:
        for arrival, chunk in _chunks(pieces):
            if "error" in chunk:
                return Record(error=_shorten(f"an error in the stream: {json.dumps(chunk['error'])}"))
            if _has_text(chunk):
                arrivals.append(arrival)
            usage = chunk.get("usage") or usage
        if usage is None:
            return Record(error="the stream says no usage")
        if not arrivals:
            return Record(error="the stream holds no text")
        return Record(tuple(arrivals), int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Record(error=_shorten(f"the stream cannot be understood: {type(error).__name__}: {error}"))


def _chunks(pieces: Pieces) -> Iterator[tuple[float, dict[str, Any]]]:
    for arrival, line in _lines(pieces):
        data = line.removeprefix(_DATA).strip()
        if line.startswith(_DATA) and data != _DONE:
            yield arrival, json.loads(data)


def _lines(pieces: Pieces) -> Iterator[tuple[float, str]]:
    """A line comes when its end does."""
    rest = b""
    for arrival, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield arrival, line.decode()


def _has_text(chunk: dict[str, Any]) -> bool:
    return any(choice["delta"].get("content") for choice in chunk["choices"])


def _shorten(message: str) -> str:
    return " ".join(message.split())[:300]

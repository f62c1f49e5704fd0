"""Parses the recorded bytes of a stream into arrival times, token counts or an error.

This happens after the measurement, because the load client may share the machine with the server.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Pieces = Iterable[tuple[float, bytes]]
"""A response's body as it arrived: seconds since the request was sent, and bytes."""

_DATA = "data:"
_DONE = "[DONE]"


@dataclass(frozen=True)
class Record:
    """What one request's stream contained."""

    arrivals: tuple[float, ...] = ()
    """Arrival time of each chunk with text, in seconds since the request was sent."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None
    """Why there is no complete answer. None: the answer is complete."""

    @property
    def time_to_first_token(self) -> float:
        return self.arrivals[0]

    @property
    def inter_token_latencies(self) -> list[float]:
        """Seconds between chunks with text. These are times between tokens if each has its own chunk."""
        return [later - earlier for earlier, later in pairwise(self.arrivals)]


def read_stream(pieces: Pieces) -> Record:
    """Parses a stream of chat completion chunks.

    Servers differ: the first chunk may contain a role and no text. `usage` may be null, missing, in a
    separate chunk without choices, or in the last chunk with a choice.
    """
    arrivals: list[float] = []
    usage: dict[str, Any] | None = None
    try:
        for arrival, chunk in _chunks(pieces):
            if "error" in chunk:
                return Record(error=_shorten(f"the stream contains an error: {json.dumps(chunk['error'])}"))
            if _has_text(chunk):
                arrivals.append(arrival)
            usage = chunk.get("usage") or usage
        if usage is None:
            return Record(error="the stream contains no usage")
        if not arrivals:
            return Record(error="the stream contains no text")
        return Record(tuple(arrivals), int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Record(error=_shorten(f"the stream is malformed: {type(error).__name__}: {error}"))


def _chunks(pieces: Pieces) -> Iterator[tuple[float, dict[str, Any]]]:
    for arrival, line in _lines(pieces):
        data = line.removeprefix(_DATA).strip()
        if line.startswith(_DATA) and data != _DONE:
            yield arrival, json.loads(data)


def _lines(pieces: Pieces) -> Iterator[tuple[float, str]]:
    """Yields each line with the arrival time of its end."""
    rest = b""
    for arrival, piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield arrival, line.decode()


def _has_text(chunk: dict[str, Any]) -> bool:
    return any(choice["delta"].get("content") for choice in chunk["choices"])


def _shorten(message: str) -> str:
    return " ".join(message.split())[:300]

"""Many times as many requests as the engine has room for: who is served, and how fast the others are told."""

import asyncio
import json
import time
from typing import cast

import httptools

from benchmarks.gateway.client import LoadError
from benchmarks.gateway.figures import RushFigures
from benchmarks.gateway.measure import Subject, patience, probe

_TOKENS = 16
_POLL_SECONDS = 0.05


class Visitor(asyncio.Protocol):
    """Sends a request, and again when it was told to, until it is answered."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._begin()
        self._headers: dict[bytes, bytes] = {}
        self._body = b""
        self.refusals: list[float] = []
        """How long each took, in seconds."""
        self.content: str | None = None
        self.fault: str | None = None
        self.patient = True

    def ask(self) -> None:
        if self.patient:
            self._sent = time.perf_counter()
            self._transport.write(self._request)

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        status, answer = self._parser.get_status_code(), json.loads(self._body)
        if status == 200:
            self.content = answer["choices"][0]["message"]["content"]
        elif answer.get("code") == "QUEUE_FULL":
            self.refusals.append(time.perf_counter() - self._sent)
            asyncio.get_running_loop().call_later(int(self._headers[b"retry-after"]), self.ask)
        else:
            self.fault = f"it answers {status}"
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""


async def measure_rush(subject: Subject, room: int, times: int, seconds: float) -> RushFigures:
    """`room` is what the subject's engine has. Raises LoadError."""
    loop = asyncio.get_running_loop()
    request = subject.request(_TOKENS, streamed=False)
    visitors = []
    for _ in range(room * times):
        _, visitor = await loop.create_connection(lambda: Visitor(request), "127.0.0.1", subject.port)
        visitors.append(visitor)
    for visitor in visitors:
        visitor.ask()
    health = await probe(subject.port, seconds)
    for visitor in visitors:
        visitor.patient = False
    with subject.stepping(0) as clock:
        async with patience("to answer what was admitted"):
            while sum(visitor.content is not None for visitor in visitors) < room:
                clock.step()
                await asyncio.sleep(_POLL_SECONDS)
    for visitor in visitors:
        visitor.close()
    if faults := [visitor.fault for visitor in visitors if visitor.fault]:
        raise LoadError(faults[0])
    refusals = [seconds for visitor in visitors for seconds in visitor.refusals]
    contents = [visitor.content for visitor in visitors if visitor.content is not None]
    return RushFigures(room, times, len(contents), len(set(contents)) == 1, refusals, health)

"""Sends many times more requests than the engine accepts: how many are served, how fast are others refused?

One event loop sends all requests, on the gateway's machine. It does little work for each request, and another
process measures /health. The loop also measures how late it runs itself. With two or more otherwise idle
cores, the reported latencies are those of the gateway.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import httptools

from benchmarks.gateway.client import LoadError
from benchmarks.gateway.figures import RushFigures
from benchmarks.gateway.measure import Subject, patience, probe

_TOKENS = 16
_POLL_SECONDS = 0.05
_TICK_SECONDS = 0.002
_PROBE_START_SECONDS = 1.0
_ACCEPT_SECONDS = 1.0
"""Time to accept all connections. A gateway accepts one in each turn of its event loop."""
_AGAIN_SECONDS = 1.0
"""Pause after a connection that was closed without an answer."""


class Visitor(asyncio.Protocol):
    """Sends a request, and sends it again after each refusal's Retry-After, until it is answered."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._headers: dict[bytes, bytes] = {}
        self._body = b""
        self._since = 0.0
        self._asked = False
        self._parser = httptools.HttpResponseParser(self)
        self.refusals: list[float] = []
        """Seconds until each refusal because the engine was full."""
        self.turned_away: list[float] = []
        """Seconds until each refusal because of server.max_connections."""
        self.cut = 0
        """Number of connections that were closed without an answer."""
        self.content: str | None = None
        self.fault: str | None = None
        self.patient = True

    async def connect(self) -> None:
        self._since = time.perf_counter()
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._port)
        except OSError as error:
            self.fault = f"cannot connect to the gateway: {error}"

    def ask(self) -> None:
        if not self.patient or self._asked:
            return
        self._asked = True
        if self._transport is None:
            self._connecting = asyncio.create_task(self.connect())
        else:
            self._send()

    def close(self) -> None:
        self.patient = False
        if self._transport:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._begin()
        if self._asked:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        awaited, self._transport = self._asked, None
        if awaited and self.patient and self.content is None:
            self.cut += 1
            self._asked = False
            self._ask_again(_AGAIN_SECONDS)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        status, answer = self._parser.get_status_code(), json.loads(self._body)
        self._asked = False
        if status == 200:
            self.content = answer["choices"][0]["message"]["content"]
        elif answer.get("code") == "QUEUE_FULL":
            closes = self._headers.get(b"connection") == b"close"
            (self.turned_away if closes else self.refusals).append(time.perf_counter() - self._since)
            if closes and self._transport:
                self._transport.close()
                self._transport = None
            self._ask_again(int(self._headers[b"retry-after"]))
        else:
            self.fault = f"the gateway answered with status {status}"
        self._begin()

    def _ask_again(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.ask)

    def _send(self) -> None:
        assert self._transport is not None
        self._since = time.perf_counter()
        self._transport.write(self._request)

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._body = {}, b""


@contextmanager
def lateness() -> Iterator[list[float]]:
    """Measures at regular intervals how late this event loop runs, in seconds.

    All latencies that the loop measures include this.
    """
    loop, late = asyncio.get_running_loop(), list[float]()

    def tick(due: float) -> None:
        nonlocal timer
        late.append(loop.time() - due)
        due = loop.time() + _TICK_SECONDS
        timer = loop.call_at(due, tick, due)

    due = loop.time() + _TICK_SECONDS
    timer = loop.call_at(due, tick, due)
    try:
        yield late
    finally:
        timer.cancel()


async def measure_rush(subject: Subject, room: int, times: int, seconds: float) -> RushFigures:
    """`room`: number of choices that the engine accepts. Raises LoadError."""
    request = subject.request(_TOKENS, streamed=False)
    visitors = [Visitor(subject.port, request) for _ in range(room * times)]
    probing = asyncio.create_task(probe(subject.port, seconds))
    await asyncio.sleep(_PROBE_START_SECONDS)  # The probe connects before connections run out.
    for visitor in visitors:
        await visitor.connect()
    await asyncio.sleep(_ACCEPT_SECONDS)
    with lateness() as late:
        for visitor in visitors:
            visitor.ask()
        health = await probing
    for visitor in visitors:
        visitor.patient = False
    with subject.stepping(0) as clock:
        async with patience("to answer the admitted requests"):
            while sum(visitor.content is not None for visitor in visitors) < room:
                clock.step()
                await asyncio.sleep(_POLL_SECONDS)
    for visitor in visitors:
        visitor.close()
    if faults := [visitor.fault for visitor in visitors if visitor.fault]:
        raise LoadError(faults[0])
    contents = [visitor.content for visitor in visitors if visitor.content is not None]
    return RushFigures(
        room=room,
        times=times,
        served=len(contents),
        alike=len(set(contents)) == 1,
        refusal_latencies=[seconds for visitor in visitors for seconds in visitor.refusals],
        turned_away_latencies=[seconds for visitor in visitors for seconds in visitor.turned_away],
        cut=sum(visitor.cut for visitor in visitors),
        client_lateness=late,
        health_latencies=health,
    )

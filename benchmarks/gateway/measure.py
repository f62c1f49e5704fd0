"""Measures a running gateway under load. Does not start the gateway or its engine."""

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from app.bench.client import Workload
from benchmarks.gateway.client import Connections, LoadError, http_request
from benchmarks.gateway.figures import Load, Point, RequestFigures, StreamFigures
from benchmarks.gateway.steps import StepClock
from benchmarks.resources import processor_seconds

_PATH = "/chat/completions"
_ENDLESS = 10**8  # tokens
_REQUEST_STEP_SECONDS = 0.002
_SETTLE_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Subject:
    """A running gateway."""

    engine: str
    process: psutil.Process
    port: int
    pipe: Path
    model: str
    prompt: str

    @contextmanager
    def stepping(self, interval: float, streams: int = 1) -> Iterator[StepClock]:
        """Yields the clock of the engine's steps. If `interval` is 0, report arriving tokens to it."""
        clock = StepClock(self.pipe, interval, streams)
        try:
            yield clock
        finally:
            clock.stop()

    @property
    def rss(self) -> int:
        return int(self.process.memory_info().rss)

    def request(self, tokens: int, streamed: bool) -> bytes:
        body = json.loads(Workload(tokens).encode(self.model, self.prompt))
        return http_request(_PATH, json.dumps(body | {"stream": streamed}).encode())


class _Meter:
    """Measures the load from its creation to `read`."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._began = self._now()

    def read(self) -> Load:
        return Load(*(now - then for now, then in zip(self._now(), self._began, strict=True)))

    def _now(self) -> tuple[float, float, float]:
        return time.perf_counter(), processor_seconds(self._subject.process.pid), time.process_time()


async def measure_streams(
    subject: Subject, point: Point, seconds: float, probe_seconds: float
) -> StreamFigures:
    """Raises LoadError."""
    rss_before = subject.rss
    events = 0
    with subject.stepping(point.step_seconds, point.streams) as clock:

        def count(number: int) -> None:
            nonlocal events
            events += number
            clock.arrive(number)

        async with Connections() as streams:
            await streams.open(subject.port, point.streams, subject.request(_ENDLESS, streamed=True), count)
            async with patience("to open the streams"):
                while streams.begun < point.streams:
                    clock.step()  # The gateway answers a stream with its first token.
                    await streams.watch(_POLL_SECONDS)
            clock.start()
            await streams.watch(_SETTLE_SECONDS)
            meter, before = _Meter(subject), events
            await streams.watch(seconds)
            load, tokens = meter.read(), events - before
            latencies, _ = await asyncio.gather(
                probe(subject.port, probe_seconds), streams.watch(probe_seconds)
            )
            rss_during = subject.rss
    await _wait_until_idle(subject.port)
    return StreamFigures(subject.engine, point, load, tokens, latencies, rss_before, rss_during, subject.rss)


async def measure_requests(
    subject: Subject, tokens: int, streamed: bool, connections: int, seconds: float
) -> RequestFigures:
    """Raises LoadError."""
    with subject.stepping(_REQUEST_STEP_SECONDS) as clock:
        async with Connections() as load:
            clock.start()
            await load.open(subject.port, connections, subject.request(tokens, streamed))
            await load.watch(_SETTLE_SECONDS)
            meter, before = _Meter(subject), load.answers
            await load.watch(seconds)
            cost, requests = meter.read(), load.answers - before
    return RequestFigures(subject.engine, streamed, tokens, cost, requests)


async def probe(port: int, seconds: float) -> list[float]:
    """Measures latencies of /health in another process. Raises LoadError."""
    command = ("-m", "benchmarks.gateway.probe", str(port), str(seconds))
    probe = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    output, _ = await probe.communicate()
    if probe.returncode:
        raise LoadError("the probe of /health failed; see its message above")
    latencies: list[float] = json.loads(output)
    return latencies


async def _wait_until_idle(port: int) -> None:
    async with httpx.AsyncClient(trust_env=False) as client, patience("to become idle"):
        running = True
        while running:
            await asyncio.sleep(_SETTLE_SECONDS)
            metrics = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
            running = re.search(r"^tiller_running\S* (?!0\.0$)", metrics, re.MULTILINE) is not None


@asynccontextmanager
async def patience(purpose: str) -> AsyncIterator[None]:
    """Raises LoadError if the context takes too long. `purpose` begins with "to"."""
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            yield
    except TimeoutError:
        raise LoadError(f"the gateway needs more than {_PATIENCE_SECONDS:.0f} s {purpose}") from None

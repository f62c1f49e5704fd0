"""Samples what a server's processes use, and the gauges in the server's /metrics."""

import asyncio
import re
import time
from dataclasses import dataclass, field

import httpx
import psutil

from app.bench.client import Target, connect
from benchmarks.resources import Usage, usage

_GAUGE = re.compile(r"^# TYPE (\S+)(?<!_created) gauge$", re.MULTILINE)  # _created: a counter's start time


@dataclass(frozen=True)
class Sample:
    seconds: float
    """Time since the start of the load."""
    gateway: Usage
    worker: Usage
    """The sum over all descendants of the gateway process."""
    gauges: dict[str, float] = field(default_factory=dict)
    """Gauges in /metrics, summed over their labels. Empty if the server did not answer."""


class Sampler:
    """Samples one server."""

    def __init__(self, target: Target, gateway: psutil.Process) -> None:
        self._target = target
        self._gateway = gateway
        self._began = time.monotonic()
        self.samples: list[Sample] = []
        """Samples taken by `run`, in order."""

    def begin(self) -> None:
        """Starts the count of seconds."""
        self._began = time.monotonic()

    async def run(self, interval: float) -> None:
        """Takes a sample every `interval` seconds, until it is cancelled."""
        while True:
            self.samples.append(await self.sample())
            await asyncio.sleep(interval)

    async def sample(self) -> Sample:
        gauges = await self._gauges()
        try:
            workers = self._gateway.children(recursive=True)
        except psutil.NoSuchProcess:
            workers = []
        return Sample(time.monotonic() - self._began, usage([self._gateway]), usage(workers), gauges)

    async def _gauges(self) -> dict[str, float]:
        try:
            async with connect(self._target) as client:
                answer = await client.get("/metrics")
                return read_gauges(answer.text) if answer.is_success else {}
        except httpx.HTTPError:
            return {}


def read_gauges(text: str) -> dict[str, float]:
    """Reads Prometheus' text format. Sums gauges over their labels."""
    gauges = dict.fromkeys(_GAUGE.findall(text), 0.0)
    for line in text.splitlines():
        name = re.split(r"[{ ]", line, maxsplit=1)[0]
        if name in gauges:
            gauges[name] += float(line.rpartition(" ")[2])
    return gauges

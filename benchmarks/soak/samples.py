"""What a server's processes hold at a moment, and what the server itself says of its load."""

import asyncio
import re
import time
from dataclasses import dataclass, field

import httpx
import psutil

from app.bench.client import Target, connect
from benchmarks.resources import Usage, usage

_GAUGE = re.compile(r"^# TYPE (\S+)(?<!_created) gauge$", re.MULTILINE)  # when a counter began is no gauge


@dataclass(frozen=True)
class Sample:
    seconds: float
    """Since the load began."""
    gateway: Usage
    worker: Usage
    """All processes below the gateway, together."""
    gauges: dict[str, float] = field(default_factory=dict)
    """Of /metrics; those with labels are added up. Empty when the server did not answer."""


class Sampler:
    """Looks at one server."""

    def __init__(self, target: Target, gateway: psutil.Process) -> None:
        self._target = target
        self._gateway = gateway
        self._began = time.monotonic()
        self.samples: list[Sample] = []
        """Of `run`, in order."""

    def begin(self) -> None:
        """From here on seconds are counted."""
        self._began = time.monotonic()

    async def run(self, interval: float) -> None:
        """Samples every so many seconds, until it is cancelled."""
        while True:
            self.samples.append(await self.sample())
            await asyncio.sleep(interval)

    async def sample(self) -> Sample:
        gauges = await self._gauges()
        try:
            below = self._gateway.children(recursive=True)
        except psutil.NoSuchProcess:
            below = []
        return Sample(time.monotonic() - self._began, usage([self._gateway]), usage(below), gauges)

    async def _gauges(self) -> dict[str, float]:
        try:
            async with connect(self._target) as client:
                answer = await client.get("/metrics")
                return read_gauges(answer.text) if answer.is_success else {}
        except httpx.HTTPError:
            return {}


def read_gauges(text: str) -> dict[str, float]:
    """From Prometheus' text format."""
    gauges = dict.fromkeys(_GAUGE.findall(text), 0.0)
    for line in text.splitlines():
        name = re.split(r"[{ ]", line, maxsplit=1)[0]
        if name in gauges:
            gauges[name] += float(line.rpartition(" ")[2])
    return gauges

"""Injects random faults: the worker is killed or stopped, crowds disconnect, garbage arrives."""

import asyncio
import random
import signal
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx
import psutil

from benchmarks.chaos.clients import Question

_CROWD = 100
_CROWD_LEAVES_AFTER = 0.5
_GARBAGE_BYTES = 50_000
_HASTY = 0.2
"""This share of the faults does not wait until the server has recovered."""


class Faults:
    """Injects one fault after the other into the server with this gateway process."""

    def __init__(
        self, client: httpx.AsyncClient, gateway: psutil.Process, question: Question, rng: random.Random
    ) -> None:
        self.injected: Counter[str] = Counter()
        self._client = client
        self._gateway = gateway
        self._question = question
        self._rng = rng
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "worker killed": self._kill,
            "worker stopped": self._stop,
            "crowd that leaves": self._crowd,
            "garbage": self._garbage,
        }

    async def go_on(self, shortest: float, longest: float) -> None:
        """Injects faults until it is cancelled, with pauses of `shortest` to `longest` seconds."""
        while True:
            await asyncio.sleep(self._rng.uniform(shortest, longest))
            kind = self._rng.choice(sorted(self._kinds))
            if self._rng.random() > _HASTY:
                await self._until_it_serves()
            await self._kinds[kind]()
            self.injected[kind] += 1

    async def _until_it_serves(self) -> None:
        while (await self._client.get("/health")).status_code != httpx.codes.OK:  # noqa: ASYNC110
            await asyncio.sleep(1)

    async def _kill(self) -> None:
        self._signal(signal.SIGKILL)

    async def _stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        for worker in self._gateway.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                worker.send_signal(number)

    async def _crowd(self) -> None:
        async def come_and_go() -> None:
            with suppress(TimeoutError, httpx.HTTPError):
                async with asyncio.timeout(_CROWD_LEAVES_AFTER):
                    await self._client.post("/v1/chat/completions", json=self._question.body)

        await asyncio.gather(*(come_and_go() for _ in range(_CROWD)))

    async def _garbage(self) -> None:
        url = self._client.base_url
        with suppress(OSError), socket.create_connection((url.host, url.port or 80), timeout=5) as connection:
            connection.sendall(self._rng.randbytes(_GARBAGE_BYTES))

"""Starts the workers of one model on this host, or connects to those that were started on their own."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from app.workers.connection import StandingWorker
from app.workers.replicas import DirectionArchive, Replicas, RunningEngine
from app.workers.supervisor import SameModel, SupervisedEngine, supervise
from app.workers.text_file_cache import TextFileCache
from inference.interface.config import EngineConfig
from inference.interface.processors import allowed_processors
from inference.interface.worker_key import WorkerKey

_LOOK_SECONDS = 1.0
"""Between two looks for workers that are gone for good."""


@asynccontextmanager
async def run_replicas(config: EngineConfig) -> AsyncIterator[RunningEngine]:
    """Starts `config.replicas` workers with the same model. Raises StartError if one cannot start."""
    count = config.replicas
    if count > 1 and config.threads is None:
        threads = max(1, allowed_processors() // count)
        config = msgspec.structs.replace(config, threads=threads)
    async with AsyncExitStack() as stack:
        # The first worker starts alone, because it may have to download the model.
        first = await stack.enter_async_context(supervise(config))
        same = msgspec.structs.replace(config, source=first.model.directory, log=config.log.without_bars())
        others = [supervise(msgspec.structs.replace(same, replica=number)) for number in range(1, count)]
        try:
            async with asyncio.TaskGroup() as group:
                starting = [group.create_task(stack.enter_async_context(other)) for other in others]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        yield Replicas([first, *(task.result() for task in starting)]) if others else first


@asynccontextmanager
async def connect_workers(
    model: str, addresses: Collection[str], key: WorkerKey | None, cache: Path
) -> AsyncIterator[RunningEngine]:
    """Connects to workers that were started on their own. Yields once one of them serves.

    All must have the same model. Those that cannot be reached, or refuse this server, are tried again.
    `model`: its name. `key`: for those at tcp://. `cache`: the cache directory, for their tokenizers and chat
    templates.
    """
    async with StandingWorkers(model, key, cache).running() as workers:
        workers.follow(addresses)
        await workers.engine.wait_available()
        yield workers.engine


class StandingWorkers:
    """Connections to the workers of one model. Which workers these are may change."""

    def __init__(
        self, model: str, key: WorkerKey | None, cache: Path, archive: DirectionArchive | None = None
    ) -> None:
        """See `connect_workers`."""
        self.engine = Replicas(archive=archive)
        self._model = model
        self._key = key
        self._files = TextFileCache(cache)
        self._same_model = SameModel()
        self._wanted: frozenset[str] = frozenset()
        self._connections: dict[str, _Connection] = {}

    def follow(self, addresses: Collection[str]) -> None:
        """The addresses of the workers from now on.

        A worker that is not among them is used as long as its connection stands.
        """
        self._wanted = frozenset(addresses)
        for address in addresses:
            if address not in self._connections:
                self._connections[address] = self._connect(address)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["StandingWorkers"]:
        """Keeps the connections up to the end."""
        looking = asyncio.create_task(self._look_for_lost())
        try:
            yield self
        finally:
            looking.cancel()
            tasks = [looking, *(connection.running for connection in self._connections.values())]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _connect(self, address: str) -> "_Connection":
        key = self._key if address.startswith("tcp:") else None
        source = StandingWorker(self._model, address, key, self._files)
        engine = SupervisedEngine(source, same_model=self._same_model, patient=True)
        running = asyncio.create_task(engine.run())
        return _Connection(engine, self.engine.add(engine), running)

    async def _look_for_lost(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for address, connection in list(self._connections.items()):
                if address not in self._wanted and not connection.engine.is_connected:
                    connection.running.cancel()
                    self.engine.remove(connection.number)
                    del self._connections[address]


@dataclass(frozen=True)
class _Connection:
    engine: SupervisedEngine
    number: int
    """Of the engine in Replicas."""
    running: asyncio.Task[None]

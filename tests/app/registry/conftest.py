"""A registry on a real socket, in a thread of its own, and clients of it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

from app import __version__
from app.concepts.concept import Concept, Example
from app.concepts.vectors.imported import ServedModel, bind
from app.registry.client import RegistryClient
from app.registry.listening import listening
from app.registry.server import Registry
from inference.interface.concepts import GivenVectors
from inference.interface.registry import ModelLoad
from inference.interface.worker_key import WorkerKey


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class RunningRegistry:
    """Can be stopped and started again."""

    def __init__(self, address: str, directory: Path, key: WorkerKey | None = None) -> None:
        self.address = address
        self.clock = Clock()
        self.registry: Registry | None = None
        self._directory = directory
        self._key = key
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._may_run = threading.Event()
        self._may_run.set()

    def start(self) -> None:
        bound = threading.Event()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, args=(bound,))
        self._thread.start()
        assert bound.wait(5)

    def stop(self) -> None:
        """As if it was killed."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Answers nothing for the time of the context, but its connections stand."""
        self._may_run.clear()
        try:
            yield
        finally:
            self._may_run.set()

    def _run(self, bound: threading.Event) -> None:
        with listening(self.address, self._key) as socket:
            self.registry = Registry(socket, self._directory, __version__, self.clock)
            bound.set()
            while not self._stopping.is_set():
                self._may_run.wait()
                self.registry.turn(20)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RunningRegistry]:
    running = RunningRegistry(f"ipc://{tmp_path}/registry.sock", tmp_path / "registry")
    running.start()
    yield running
    running.stop()


class Heard:
    """Implements Listener: notes what the registry tells."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.removed_ids: list[str] = []
        self.ids: list[str] = []

    async def stored(self, name: str, content: bytes) -> None:
        self.files[name] = content

    async def removed(self, concept: str) -> None:
        self.removed_ids.append(concept)

    async def joined(self, concepts: list[str]) -> None:
        self.ids = concepts


@asynccontextmanager
async def joining(
    registry: RunningRegistry,
    url: str = "http://a",
    key: WorkerKey | None = None,
    loads: Callable[[], dict[str, ModelLoad]] = dict,
) -> AsyncIterator[RegistryClient]:
    client = RegistryClient(registry.address, key, loads)
    client.url, client.listener = url, Heard()
    running = asyncio.create_task(client.run())
    try:
        await until(lambda: client.joined)
        yield client
    finally:
        running.cancel()
        await asyncio.wait({running})


@pytest.fixture
async def clients(registry: RunningRegistry) -> AsyncIterator[tuple[RegistryClient, RegistryClient]]:
    async with AsyncExitStack() as stack:
        yield (
            await stack.enter_async_context(joining(registry, "http://a")),
            await stack.enter_async_context(joining(registry, "http://b")),
        )


async def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def until_async(holds: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.05)


def concept(name: str = "kind", text: str = "kind words") -> Concept:
    return Concept(f"_worker/{name}", "", (Example(text, "rude noise"),), 7)


def new_key() -> WorkerKey:
    return WorkerKey(*zmq.curve_keypair())


def imported_concept() -> Concept:
    given = GivenVectors((1, 2), np.ones((2, 8), "<f4").tobytes())
    vectors = bind(given, ServedModel("m", "5f" * 32, hidden_size=8, num_layers=4), "")
    return Concept("_worker/vectors", "", (), 7, vectors=vectors)

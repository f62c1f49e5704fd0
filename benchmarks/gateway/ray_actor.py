"""A stand-in engine in an actor of Ray, alone or behind a handle of Ray Serve. Each token comes through a
streaming call.

Tiller's cluster does not work like this. The figures say why: see docs/scaling.md.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from app.cluster.ray_edge import import_ray
from benchmarks.gateway.inside import StandIn, StandInGeneration
from benchmarks.gateway.model import load_script, model_info
from benchmarks.gateway.steps import open_pipe, take
from inference.interface.requests import GenerationRequest, TokenEvent

_MAX_STREAMS = 2000


class Actor:
    """Ray runs all methods in one event loop."""

    def __init__(self, directory: str, pipe: str) -> None:
        self._script = load_script(model_info(Path(directory)))
        self._pipe = open_pipe(Path(pipe))
        self._streams: dict[str, asyncio.Queue[TokenEvent | None]] = {}

    async def start(self) -> None:
        """Steps from now on when the load client says so."""
        asyncio.get_running_loop().add_reader(self._pipe, self._step)

    async def admit(self, request: bytes) -> None:
        decoded = msgspec.msgpack.decode(request, type=GenerationRequest)
        self._streams[decoded.request_id] = asyncio.Queue()
        self._script.add(decoded)

    async def generate(self, request_id: str) -> AsyncGenerator[bytes, None]:
        """Yields the token events of an admitted request, unless it was aborted."""
        events = self._streams.get(request_id)
        while events and (event := await events.get()):
            yield msgspec.msgpack.encode(event)
            if event.finish_reason:
                break
        self._streams.pop(request_id, None)

    async def abort(self, request_id: str) -> None:
        self._script.abort(request_id)
        if events := self._streams.pop(request_id, None):
            events.put_nowait(None)

    def _step(self) -> None:
        for _ in range(take(self._pipe)):
            for event in self._script.step():
                self._streams[event.request_id].put_nowait(event)


class RayEngine(StandIn):
    """Calls the actor for each request."""

    def __init__(self, directory: Path, actor: Any, generate: Callable[[str], AsyncIterator[bytes]]) -> None:
        """`actor`: an actor's handle, of Ray or of Ray Serve. `generate`: calls the actor's method."""
        super().__init__(model_info(directory))
        self._actor = actor
        self._generate = generate
        self._calls: set[asyncio.Task[None]] = set()

    async def submit(self, request: GenerationRequest) -> StandInGeneration:
        generation = await super().submit(request)
        await self._actor.admit.remote(msgspec.msgpack.encode(request))
        call = asyncio.create_task(self._call(request.request_id))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return generation

    async def _call(self, request_id: str) -> None:
        async for event in self._generate(request_id):
            self.deliver(msgspec.msgpack.decode(event, type=TokenEvent))

    def abort(self, request_id: str) -> None:
        self._actor.abort.remote(request_id)
        super().abort(request_id)


@asynccontextmanager
async def run_ray(directory: Path, pipe: Path) -> AsyncIterator[RayEngine]:
    """Starts Ray with one actor. Takes the place of app.workers.starting.run_replicas."""
    async with _running_ray() as ray:
        options = {"num_cpus": 0, "max_concurrency": _MAX_STREAMS}
        actor = ray.remote(Actor).options(**options).remote(str(directory), str(pipe))
        await actor.start.remote()

        async def generate(request_id: str) -> AsyncIterator[bytes]:
            async for reference in actor.generate.remote(request_id):
                yield await reference

        yield RayEngine(directory, actor, generate)


@asynccontextmanager
async def run_serve(directory: Path, pipe: Path) -> AsyncIterator[RayEngine]:
    """The same with Ray Serve, without its proxies. Needs `pip install 'ray[serve]'`."""
    from ray import serve

    async with _running_ray():
        options = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": _MAX_STREAMS}
        application = serve.deployment(Actor, **options).bind(str(directory), str(pipe))
        await asyncio.to_thread(serve.start, proxy_location="Disabled")
        handle = await asyncio.to_thread(serve.run, application, route_prefix=None)
        await handle.start.remote()
        try:
            yield RayEngine(directory, handle, handle.generate.options(stream=True).remote)
        finally:
            await asyncio.to_thread(serve.shutdown)


@asynccontextmanager
async def _running_ray() -> AsyncIterator[Any]:
    ray = import_ray()
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch:  # Ray's sockets need a short path
        with mock.patch.dict(os.environ, PYTHONPATH=_python_path()):  # Ray's processes keep it
            await asyncio.to_thread(
                ray.init, num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=scratch
            )
        try:
            yield ray
        finally:
            await asyncio.to_thread(ray.shutdown)


def _python_path() -> str:
    """With this checkout, so that Ray's processes find this module."""
    here = str(Path(__file__).parents[2])
    found = os.environ.get("PYTHONPATH")
    return os.pathsep.join([here, found]) if found else here

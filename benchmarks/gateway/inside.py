"""The smallest possible engine: it answers inside the gateway's process, without socket and frames."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.errors import EngineUnavailable
from app.telemetry.observation import WorkerState
from benchmarks.gateway.model import load_script, model_info
from benchmarks.gateway.script import Script
from benchmarks.gateway.steps import open_pipe, take
from inference.interface.concepts import TrainConcept, TrainingUpdate
from inference.interface.protocol import ModelInfo
from inference.interface.requests import GenerationRequest, TokenEvent


class StandIn:
    """Implements app.workers.engine.Engine for requests with one choice. Cannot train concepts."""

    def __init__(self, model: ModelInfo) -> None:
        self.model = model
        self.available = True
        self.free_capacity = sys.maxsize
        self._generations: dict[str, StandInGeneration] = {}

    @property
    def workers(self) -> list[WorkerState]:
        return [WorkerState(self.available)]

    async def wait_available(self) -> None:
        if not self.available:
            raise EngineUnavailable

    async def submit(self, request: GenerationRequest) -> "StandInGeneration":
        generation = self._generations[request.request_id] = StandInGeneration(self, request.request_id)
        return generation

    def deliver(self, event: TokenEvent) -> None:
        """Drops the event if its request has ended."""
        if generation := self._generations.get(event.request_id):
            generation.deliver([event])

    def abort(self, request_id: str) -> None:
        self._generations.pop(request_id, None)

    async def train(self, command: TrainConcept) -> AsyncGenerator[TrainingUpdate, None]:  # noqa: ARG002
        raise EngineUnavailable
        yield  # makes this method a generator

    def prioritize(self, concept: str) -> None:
        pass

    def forget(self, concept: str) -> None:
        pass

    def drain(self, seconds: float) -> None:  # noqa: ARG002
        self.available = False


class StandInGeneration:
    queue_seconds = 0.0

    def __init__(self, engine: StandIn, request_id: str) -> None:
        self._engine = engine
        self._request_id = request_id
        self._arrived: asyncio.Queue[list[TokenEvent]] = asyncio.Queue()
        self.first_events: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.clipped: dict[str, float] = {}

    def deliver(self, events: list[TokenEvent]) -> None:
        self._arrived.put_nowait(events)
        if not self.first_events.done():
            self.first_events.set_result(None)

    async def __aiter__(self) -> AsyncGenerator[list[TokenEvent], None]:
        try:
            running = True
            while running:
                events = await self._arrived.get()
                running = not any(event.finish_reason for event in events)
                yield events
        finally:
            self.abort()

    def abort(self, index: int | None = None) -> None:  # noqa: ARG002
        self._engine.abort(self._request_id)


class InsideEngine(StandIn):
    """Gives each stream its next token when it is told to step."""

    def __init__(self, model: ModelInfo, script: Script) -> None:
        super().__init__(model)
        self._script = script

    async def submit(self, request: GenerationRequest) -> StandInGeneration:
        self._script.add(request)
        return await super().submit(request)

    def step(self) -> None:
        for event in self._script.step():
            self.deliver(event)

    def abort(self, request_id: str) -> None:
        self._script.abort(request_id)
        super().abort(request_id)


@asynccontextmanager
async def run_inside(directory: Path, pipe: Path) -> AsyncIterator[InsideEngine]:
    """Takes the place of app.workers.starting.run_replicas."""
    model = model_info(directory)
    engine = InsideEngine(model, load_script(model))
    steps = open_pipe(pipe)

    def step() -> None:
        for _ in range(take(steps)):
            engine.step()

    loop = asyncio.get_running_loop()
    loop.add_reader(steps, step)
    try:
        yield engine
    finally:
        loop.remove_reader(steps)
        os.close(steps)

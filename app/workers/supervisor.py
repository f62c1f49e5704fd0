"""The engine of the server: that of a worker, and of the next one when that ends. Knows no messages."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from app.errors import EngineUnavailable, StartError
from app.telemetry.observation import WorkerState
from app.workers.engine import Generation
from app.workers.process import run_worker
from app.workers.timing import Timing
from app.workers.worker_engine import WorkerEngine
from inference.interface.config import EngineConfig
from inference.interface.protocol import GenerationRequest, ModelInfo, TrainConcept, TrainingUpdate

_log = logging.getLogger(__name__)


@asynccontextmanager
async def supervise(config: EngineConfig, timing: Timing = Timing()) -> AsyncIterator["SupervisedEngine"]:
    """An engine whose first worker has loaded its model. Raises StartError if that one cannot."""
    engine = SupervisedEngine(config, timing)
    running = asyncio.create_task(engine.run())
    serving = asyncio.create_task(engine.wait_available())
    try:
        await asyncio.wait({running, serving}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        yield engine
    finally:
        serving.cancel()
        running.cancel()
        await asyncio.wait({running})


class SupervisedEngine:
    """Implements app.engine.Engine. What is open in a worker ends with it; the next one begins with nothing.

    It finds what was trained on the disk.
    """

    def __init__(self, config: EngineConfig, timing: Timing = Timing()) -> None:
        self.timing = timing
        self._config = config
        self._model: ModelInfo | None = None
        self._worker: WorkerEngine | None = None
        self._changed = asyncio.Event()
        """Set while there is a worker, or none will come any more."""
        self._draining = False
        self._restarts = 0
        self._to_forget: set[str] = set()

    @property
    def model(self) -> ModelInfo:
        assert self._model is not None  # noqa: S101 - for the type checker: there was a worker
        return self._model

    @property
    def available(self) -> bool:
        return not self._draining and self._worker is not None and self._worker.available

    @property
    def room(self) -> int:
        """Of a worker that is not there it says nothing."""
        return (
            self._config.max_running + self._config.max_queued if self._worker is None else self._worker.room
        )

    @property
    def workers(self) -> Sequence[WorkerState]:
        """The one that is there."""
        worker = self._worker
        if worker is None:
            return [WorkerState(up=False, restarts=self._restarts)]
        return [WorkerState(worker.available, self._restarts, worker.pid, worker.stats, worker.intervals)]

    @property
    def load(self) -> int:
        """How many requests are open."""
        return 0 if self._worker is None else self._worker.load

    async def wait_available(self) -> None:
        await self._changed.wait()
        if self._draining:
            raise EngineUnavailable

    async def submit(self, request: GenerationRequest) -> Generation:
        return await self._current().submit(request)

    def train(self, command: TrainConcept) -> AsyncIterator[TrainingUpdate]:
        self._to_forget.discard(command.concept)
        return self._current().train(command)

    def prioritize(self, concept: str) -> None:
        if self._worker is not None:
            self._worker.prioritize(concept)

    def forget(self, concept: str) -> None:
        if self._worker is not None:
            self._worker.forget(concept)
        else:
            self._to_forget.add(concept)

    def drain(self, seconds: float) -> None:
        """Takes no more requests from now on; those that run may go on for so long."""
        self._draining = True
        self._changed.set()
        if self._worker is not None:
            self._worker.drain(seconds)

    async def run(self) -> None:
        """Has a worker until it is cancelled or drained. Raises what keeps the first one from starting."""
        delay = 0.0
        while True:
            served = await self._run_one()
            if self._draining:
                return
            delay = next_delay(delay, served, self.timing)
            _log.warning("the worker is started again in %g seconds", delay)
            await asyncio.sleep(delay)

    async def _run_one(self) -> float:
        """Returns for how many seconds it has served."""
        served = 0.0
        try:
            async with run_worker(self._config, self.timing) as worker:
                self._take(worker)
                taken = time.monotonic()
                await worker.lost.wait()
                served = time.monotonic() - taken
                self._drop()
        except Exception as error:  # also of the system, which may lack memory or files just now
            if self._model is None:
                raise
            _log.error("the worker cannot be started again: %s", error)
        return served

    def _take(self, worker: WorkerEngine) -> None:
        """Raises StartError if it has loaded other weights than those before it."""
        if self._model is None:
            # The same files from now on, wherever they came from.
            self._config = msgspec.structs.replace(self._config, source=worker.model.directory)
        elif _identity(worker.model) != _identity(self._model):
            raise StartError("the model is not the one that was served before; start the server again")
        else:
            self._restarts += 1
        self._model, self._worker = worker.model, worker
        for concept in self._to_forget:
            worker.forget(concept)
        self._to_forget.clear()
        self._changed.set()

    def _drop(self) -> None:
        self._worker = None
        if not self._draining:
            self._changed.clear()

    def _current(self) -> WorkerEngine:
        if self._worker is None or self._draining:
            raise EngineUnavailable
        return self._worker


def next_delay(last: float, served: float, timing: Timing) -> float:
    """Seconds to wait after a worker has served for so many, when it was `last` the time before."""
    return 0.0 if served >= timing.good else min(max(1.0, 2 * last), timing.longest_delay)


def _identity(model: ModelInfo) -> ModelInfo:
    """Without the context's length, which can depend on how much memory was free."""
    return msgspec.structs.replace(model, context_length=0)

"""An engine that replaces its worker process whenever that ends. Knows no protocol messages and no HTTP."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from app.errors import EngineUnavailable, StartError
from app.telemetry.observation import WorkerState
from app.workers.engine import Generation
from app.workers.process import ChildWorker
from app.workers.source import WorkerSource
from app.workers.timing import Timing
from app.workers.worker_engine import WorkerEngine
from inference.interface.concepts import (
    DirectionResult,
    TakeDirection,
    TrainConcept,
    TrainingUpdate,
    VectorsResult,
)
from inference.interface.config import EngineConfig
from inference.interface.protocol import ModelInfo
from inference.interface.requests import GenerationRequest

_log = logging.getLogger(__name__)


@asynccontextmanager
async def supervise(config: EngineConfig, timing: Timing = Timing()) -> AsyncIterator["SupervisedEngine"]:
    """Yields an engine once its first worker has loaded the model. Raises StartError if it cannot start."""
    engine = SupervisedEngine(ChildWorker(config), timing)
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
    """Implements app.workers.engine.Engine with one worker at a time.

    When a worker ends, its requests and trainings fail. The next worker starts without any, and loads
    finished steering vectors from the cache directory.
    """

    def __init__(
        self,
        source: WorkerSource,
        timing: Timing = Timing(),
        same_model: "SameModel | None" = None,
        patient: bool = False,
    ) -> None:
        """`same_model`: shared with other engines that must have the same model.

        `patient`: tries again if not even the first worker can start.
        """
        self._patient = patient
        self.timing = timing
        self._source = source
        self._same_model = same_model or SameModel()
        self._model: ModelInfo | None = None
        self._worker: WorkerEngine | None = None
        self._changed = asyncio.Event()
        """Set while there is a worker, and for good once the engine drains."""
        self._draining = False
        self._restarts = 0
        self._to_forget: set[str] = set()

    @property
    def model(self) -> ModelInfo:
        assert self._model is not None  # noqa: S101 - for the type checker: a worker has started
        return self._model

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def is_connected(self) -> bool:
        """Whether there is a worker, even if it takes no new requests."""
        return self._worker is not None

    @property
    def started(self) -> bool:
        """Whether a worker has served, so that the model is known."""
        return self._model is not None

    @property
    def available(self) -> bool:
        return not self._draining and self._worker is not None and self._worker.available

    @property
    def capacity(self) -> int:
        return self._source.capacity

    @property
    def free_capacity(self) -> int:
        """The full capacity while there is no worker."""
        if self._worker is None:
            return self.capacity
        return self._worker.free_capacity

    @property
    def workers(self) -> Sequence[WorkerState]:
        """The state of the current worker, or a single entry that is down."""
        worker = self._worker
        if worker is None:
            return [WorkerState(up=False, restarts=self._restarts)]
        return [WorkerState(worker.available, self._restarts, worker.pid, worker.stats, worker.intervals)]

    @property
    def load(self) -> int:
        """How many requests and readings of texts are in progress."""
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

    async def export(self, concept: str) -> VectorsResult:
        return await self._current().export(concept)

    async def direction(self, concept: str) -> DirectionResult:
        return await self._current().direction(concept)

    def take_direction(self, command: TakeDirection) -> None:
        if self._worker is not None:
            self._worker.take_direction(command)

    async def read(self, concept: str, prompts: list[list[int]], texts: list[list[int]]) -> list[list[float]]:
        return await self._current().read(concept, prompts, texts)

    def drain(self, seconds: float) -> None:
        """Refuses new requests and trainings from now on. Ends the current ones after `seconds`."""
        self._draining = True
        self._changed.set()
        if self._worker is not None:
            self._worker.drain(seconds)

    async def run(self) -> None:
        """Runs one worker after the other until it is cancelled or drained.

        Unless it is patient, raises the error of the first worker if that cannot start.
        """
        delay = 0.0
        while True:
            served = await self._run_one()
            if self._draining:
                return
            delay = next_delay(delay, served, self.timing)
            _log.warning("trying %s again in %g seconds", self._source.name, delay)
            await asyncio.sleep(delay)

    async def _run_one(self) -> float:
        """Runs one worker to its end. Returns the seconds for which it has served."""
        served = 0.0
        try:
            async with self._source.run(self.timing) as worker:
                self._set_worker(worker)
                started = time.monotonic()
                await worker.lost.wait()
                served = time.monotonic() - started
                self._clear_worker()
        except Exception as error:  # also OSError: no memory or files may be free
            if self._model is None and not self._patient:
                raise
            what = "cannot be started again" if self._model else "cannot be used yet"
            _log.error("%s %s: %s", self._source.name, what, error)
        return served

    def _set_worker(self, worker: WorkerEngine) -> None:
        """Makes this the current worker. Raises StartError if its model differs from the first worker's."""
        self._same_model.check(worker.model)
        if self._model is None:
            self._source.keep(worker.model)
        else:
            self._restarts += 1
        self._model, self._worker = worker.model, worker
        for concept in self._to_forget:
            worker.forget(concept)
        self._to_forget.clear()
        self._changed.set()

    def _clear_worker(self) -> None:
        self._worker = None
        if not self._draining:
            self._changed.clear()

    def _current(self) -> WorkerEngine:
        if self._worker is None or self._draining:
            raise EngineUnavailable
        return self._worker


def next_delay(last: float, served: float, timing: Timing) -> float:
    """Seconds to wait before the next worker starts.

    `last`: the previous delay. `served`: how long the last worker has served.
    """
    return 0.0 if served >= timing.good else min(max(1.0, 2 * last), timing.longest_delay)


class SameModel:
    """Refuses workers whose model differs from that of the first one."""

    def __init__(self) -> None:
        self._first: ModelInfo | None = None

    def check(self, model: ModelInfo) -> None:
        """Raises StartError."""
        if self._first is None:
            self._first = model
        elif _identity(model) != _identity(self._first):
            raise StartError(
                "its model differs from the one that is served; if the files have changed, restart the server"
            )


def _identity(model: ModelInfo) -> ModelInfo:
    """The model without its context length, which may depend on the free memory."""
    return msgspec.structs.replace(model, context_length=0, context_limit="")

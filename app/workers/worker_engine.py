"""The Engine for one running worker process. Knows the protocol's messages; knows no HTTP."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine

import zmq.asyncio

from app.errors import ApiError, EngineUnavailable, ErrorCode, InternalError, shorten
from app.telemetry.observation import TokenIntervals
from app.workers.questions import Questions
from inference.interface import protocol
from inference.interface.concepts import (
    DirectionResult,
    ForgetConcept,
    PrioritizeTraining,
    TakeDirection,
    TrainConcept,
    TrainingState,
    TrainingUpdate,
    VectorsResult,
)
from inference.interface.protocol import (
    Command,
    EngineStats,
    Leaving,
    ModelInfo,
    Ping,
    StartFailed,
    StepReport,
)
from inference.interface.requests import Abort, GenerationRequest, RefusalCode, SubmitResult, TokenEvent

_log = logging.getLogger(__name__)

_REFUSALS: dict[RefusalCode, tuple[str, str | None]] = {
    RefusalCode.CONTEXT_LENGTH_EXCEEDED: (
        "the prompt is too long: with max_tokens, it exceeds this model's maximum context length",
        None,
    ),
    RefusalCode.UNKNOWN_STEERING_CONCEPT: ("no such steering concept", "steering_concepts"),
    RefusalCode.QUEUE_FULL: ("too many requests are waiting; try again later", None),
    RefusalCode.INTERNAL: ("the engine failed", None),
}


class WorkerEngine:
    """Sends commands to the worker, and dispatches its reports to the generations and trainings."""

    def __init__(
        self,
        socket: zmq.asyncio.Socket,
        model: ModelInfo,
        capacity: int,
        max_unread: int = 2**16,
    ) -> None:
        """`capacity`: how many choices may run or wait in the worker.

        `max_unread`: how many tokens of one request may be unread. Each of a token's top_logprobs and
        readings counts like one more token. 2**16 unread tokens take about 10 MB.
        """
        self.max_unread = max_unread
        self._socket = socket
        self._model = model
        self._free_capacity = capacity
        self._generations: dict[str, WorkerGeneration] = {}
        self._trainings: dict[str, asyncio.Queue[TrainingUpdate | ApiError]] = {}
        self._questions = Questions(self.send)
        self._available = True
        self.pid: int | None = None
        self.stats = EngineStats()
        self.intervals = TokenIntervals()
        self.lost = asyncio.Event()
        """Set once the worker has ended, has frozen, or has sent an invalid message."""

    @property
    def model(self) -> ModelInfo:
        return self._model

    @property
    def available(self) -> bool:
        return self._available

    @property
    def free_capacity(self) -> int:
        return self._free_capacity

    @property
    def load(self) -> int:
        """How many requests and readings of texts are in progress."""
        return len(self._generations) + self._questions.num_readings

    async def submit(self, request: GenerationRequest) -> "WorkerGeneration":
        if not self._available:
            raise EngineUnavailable
        self._free_capacity -= request.n
        generation = WorkerGeneration(self, request)
        self._generations[request.request_id] = generation
        self.send(request)
        try:
            await generation.admitted
        except asyncio.CancelledError:
            generation.abort()
            raise
        return generation

    async def train(self, command: TrainConcept) -> AsyncGenerator[TrainingUpdate, None]:
        if not self._available:
            raise EngineUnavailable
        arrived = self._trainings[command.concept] = asyncio.Queue()
        self.send(command)
        try:
            ended = False
            while not ended:
                update = await arrived.get()
                if isinstance(update, ApiError):
                    raise update
                ended = update.state in (TrainingState.READY, TrainingState.FAILED)
                yield update
        finally:
            if self._trainings.get(command.concept) is arrived:
                del self._trainings[command.concept]

    def prioritize(self, concept: str) -> None:
        self.send(PrioritizeTraining(concept))

    def forget(self, concept: str) -> None:
        self.send(ForgetConcept(concept))
        if arrived := self._trainings.pop(concept, None):
            arrived.put_nowait(TrainingUpdate(concept, TrainingState.FAILED, detail="it was deleted"))

    async def export(self, concept: str) -> VectorsResult:
        if not self._available:
            raise EngineUnavailable
        return await self._questions.export(concept)

    async def direction(self, concept: str) -> DirectionResult:
        """The direction of a concept, for another worker. It has none if this worker does not know it."""
        if not self._available:
            raise EngineUnavailable
        return await self._questions.direction(concept)

    def take_direction(self, command: TakeDirection) -> None:
        """Gives the worker a direction that another one has trained."""
        self.send(command)

    async def read(self, concept: str, prompts: list[list[int]], texts: list[list[int]]) -> list[list[float]]:
        if not self._available:
            raise EngineUnavailable
        return await self._questions.read(concept, prompts, texts)

    def send(self, command: Command | Ping) -> None:
        """Never blocks, because the socket has no high-water mark."""
        self._socket.send(protocol.encode(command))

    def release(self, request_id: str, choices: int, last: bool) -> None:
        """Frees the capacity of ended choices. `last`: drops the request; later reports on it are ignored."""
        self._free_capacity += choices
        if last:
            self._generations.pop(request_id, None)

    def drain(self, seconds: float) -> None:
        """Refuses new requests and trainings from now on. Ends the current ones after `seconds`."""
        self._available = False
        asyncio.get_running_loop().call_later(seconds, self._end_all)

    def _end_all(self) -> None:
        self._available = False
        for generation in list(self._generations.values()):
            generation.fail(EngineUnavailable())
        for arrived in self._trainings.values():
            arrived.put_nowait(EngineUnavailable())
        self._questions.fail_all()

    async def serve(self, wait_for_loss: Callable[[], Coroutine[None, None, str]]) -> None:
        """Dispatches reports until the worker is lost, or sends an invalid message.

        Then fails all open requests and trainings with EngineUnavailable. `wait_for_loss` returns when the
        worker is lost, with the reason for the log.
        """
        reading = asyncio.create_task(self._read())
        losing = asyncio.create_task(wait_for_loss())
        try:
            await asyncio.wait({reading, losing}, return_when=asyncio.FIRST_COMPLETED)
            if losing.done():
                _log.error("%s", losing.result())
            elif error := reading.exception():
                _log.error("the worker's messages cannot be read", exc_info=error)
            else:
                _log.error("%s", reading.result())
        finally:
            reading.cancel()
            losing.cancel()
            self._end_all()
            self.lost.set()

    async def _read(self) -> str:
        """Returns only if the worker ends the connection, with its reason."""
        while True:
            report = protocol.decode_report(await self._socket.recv())
            if isinstance(report, StepReport):
                self._dispatch(report)
            elif isinstance(report, Leaving):
                _log.info("the worker takes no new requests, and ends soon")
                self._available = False
            elif isinstance(report, StartFailed):
                return report.message

    def _dispatch(self, report: StepReport) -> None:
        for result in report.submit_results:
            if generation := self._generations.get(result.request_id):
                generation.admit(result)
        for request_id, queue_seconds in report.starts.items():
            if generation := self._generations.get(request_id):
                generation.start(queue_seconds)
        events: dict[str, list[TokenEvent]] = {}
        for event in report.events:
            events.setdefault(event.request_id, []).append(event)
        now = time.perf_counter()
        since: dict[float, int] = {}  # time of the previous delivery -> tokens; most share the same time
        for request_id, its_events in events.items():
            if generation := self._generations.get(request_id):
                if before := generation.delivered:
                    since[before] = since.get(before, 0) + len(its_events)
                generation.delivered = now
                generation.deliver(its_events)
        for before, count in since.items():
            self.intervals.add(now - before, count)
        for failure in report.failures:
            if generation := self._generations.get(failure.request_id):
                generation.fail(InternalError(failure.detail))
        self.stats = report.stats or self.stats
        for update in report.training:
            if arrived := self._trainings.get(update.concept):
                arrived.put_nowait(update)
        self._questions.dispatch(report)


class WorkerGeneration:
    """One request in the worker. It ends when each of its choices has ended or was aborted."""

    def __init__(self, engine: WorkerEngine, request: GenerationRequest) -> None:
        self._engine = engine
        self._request_id = request.request_id
        self._running = set(range(request.n))
        self._unread = 0
        self._weight = 1 + (request.sampling.top_logprobs or 0) + len(request.readings)
        self._arrived: asyncio.Queue[list[TokenEvent] | ApiError] = asyncio.Queue()
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.first_events: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queue_seconds: float | None = None
        self.clipped: dict[str, float] = {}
        self.delivered: float | None = None
        """When the latest events arrived, by time.perf_counter()."""

    async def __aiter__(self) -> AsyncGenerator[list[TokenEvent], None]:
        try:
            while self._running or not self._arrived.empty():
                arrived = await self._arrived.get()
                if isinstance(arrived, ApiError):
                    raise arrived
                self._unread -= self._weight * len(arrived)
                if arrived:
                    yield arrived
        finally:
            self.abort()

    def abort(self, index: int | None = None) -> None:
        ending = self._running & ({index} if index is not None else self._running)
        if not ending:
            return
        self._engine.send(Abort(self._request_id, index))
        self._end(ending)
        self._arrived.put_nowait([])  # wakes the iteration, which then sees that no choice runs

    def admit(self, result: SubmitResult) -> None:
        if result.refusal is not None:
            self.fail(_refusal(result))
        elif not self.admitted.done():  # If `submit` was cancelled, so was `admitted`. The abort follows.
            self.clipped = result.clipped
            self.admitted.set_result(None)

    def start(self, queue_seconds: float) -> None:
        """A choice has left the worker's queue."""
        if self.queue_seconds is None:
            self.queue_seconds = queue_seconds

    def deliver(self, events: list[TokenEvent]) -> None:
        events = [event for event in events if event.index in self._running]
        self._arrived.put_nowait(events)
        self._unread += self._weight * len(events)
        if not self.first_events.done():
            self.first_events.set_result(None)
        if ended := {event.index for event in events if event.finish_reason}:
            self._end(ended)
        if self._unread > self._engine.max_unread and self._running:
            self.abort()
            self._arrived.put_nowait(ApiError(ErrorCode.REQUEST_TIMEOUT, "the answer was read too slowly"))

    def fail(self, error: ApiError) -> None:
        self._end(self._running)
        if not self.admitted.done():
            self.admitted.set_exception(error)
            return
        self._arrived.put_nowait(error)
        if not self.first_events.done():
            self.first_events.set_exception(error)
            self.first_events.exception()  # marks it as retrieved: perhaps nobody waits for it

    def _end(self, choices: set[int]) -> None:
        ending = self._running & choices
        if ending:
            self._running = self._running - ending
            self._engine.release(self._request_id, len(ending), last=not self._running)


def _refusal(result: SubmitResult) -> ApiError:
    assert result.refusal is not None  # noqa: S101 - for the type checker
    message, param = _REFUSALS[result.refusal]
    if result.detail:
        message += f": {shorten(result.detail)}"
    return ApiError(ErrorCode(result.refusal.value), message, param)

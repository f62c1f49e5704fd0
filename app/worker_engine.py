"""The Engine over a worker process and its socket. Knows the protocol's messages; knows no HTTP."""

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import zmq
import zmq.asyncio

from app.errors import ApiError, EngineUnavailable, ErrorCode, InternalError, StartError, shorten
from inference import protocol
from inference.config import EngineConfig
from inference.protocol import (
    Abort,
    Admission,
    ForgetConcept,
    GenerationRequest,
    HastenTraining,
    ModelInfo,
    StepReport,
    TokenEvent,
    TrainConcept,
    TrainingState,
    TrainingUpdate,
)

_log = logging.getLogger(__name__)

_STOP_SECONDS = 5.0
_LAST_WORDS_SECONDS = 1.0

_REFUSALS: dict[protocol.RefusalCode, tuple[str, str | None]] = {
    protocol.RefusalCode.CONTEXT_LENGTH_EXCEEDED: (
        "prompt and max_tokens exceed what the engine holds",
        None,
    ),
    protocol.RefusalCode.UNKNOWN_STEERING_CONCEPT: ("no such steering concept", "steering_concepts"),
    protocol.RefusalCode.QUEUE_FULL: ("too many requests are waiting; try again later", None),
    protocol.RefusalCode.INTERNAL: ("the engine failed", None),
}


@asynccontextmanager
async def run_worker(config: EngineConfig) -> AsyncIterator["WorkerEngine"]:
    """An engine that has loaded its model; its process ends with the context. Raises StartError."""
    with (
        tempfile.TemporaryDirectory(prefix="tiller-") as directory,  # only this user may enter it
        zmq.asyncio.Context() as context,
        context.socket(zmq.PAIR) as socket,
    ):
        socket.set_hwm(0)
        socket.linger = 0
        endpoint = f"ipc://{directory}/worker.sock"
        socket.bind(endpoint)
        process = await _start_process(endpoint, config)
        try:
            model = await _configure(process, socket, config)
            engine = WorkerEngine(socket, model, config.max_running + config.max_queued)
            serving = asyncio.create_task(engine.serve(process))
            yield engine
            serving.cancel()
        finally:
            await _stop(process)


class WorkerEngine:
    """Commands go out as they come; reports are dispatched to the generations and trainings they concern."""

    def __init__(self, socket: zmq.asyncio.Socket, model: ModelInfo, places: int) -> None:
        """`places`: choices that may run or wait in the worker."""
        self._socket = socket
        self._model = model
        self._room = places
        self._generations: dict[str, WorkerGeneration] = {}
        self._trainings: dict[str, asyncio.Queue[TrainingUpdate | ApiError]] = {}
        self._available = True

    @property
    def model(self) -> ModelInfo:
        return self._model

    @property
    def available(self) -> bool:
        return self._available

    @property
    def room(self) -> int:
        return self._room

    async def submit(self, request: GenerationRequest) -> "WorkerGeneration":
        if not self._available:
            raise EngineUnavailable
        self._room -= request.n
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

    def hasten(self, concept: str) -> None:
        self.send(HastenTraining(concept))

    def forget(self, concept: str) -> None:
        self.send(ForgetConcept(concept))
        if arrived := self._trainings.pop(concept, None):
            arrived.put_nowait(TrainingUpdate(concept, TrainingState.FAILED, detail="it was deleted"))

    def send(self, command: protocol.Command) -> None:
        """Never waits: the socket has no high-water mark."""
        self._socket.send(protocol.encode(command))

    def release(self, request_id: str, choices: int, last: bool) -> None:
        """Choices of a request have ended. After the last, what the worker may still say of it is ignored."""
        self._room += choices
        if last:
            self._generations.pop(request_id, None)

    def drain(self, seconds: float) -> None:
        """Takes no more requests from now on; those that run may go on for so long."""
        self._available = False
        asyncio.get_running_loop().call_later(seconds, self._end_all)

    def _end_all(self) -> None:
        self._available = False
        for generation in list(self._generations.values()):
            generation.fail(EngineUnavailable())
        for arrived in self._trainings.values():
            arrived.put_nowait(EngineUnavailable())

    async def serve(self, process: asyncio.subprocess.Process) -> None:
        """Dispatches reports until the worker ends; then all that is open does, too."""
        reading = asyncio.create_task(self._read())
        ending = asyncio.create_task(process.wait())
        try:
            await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                _log.error("the worker has ended with status %s", process.returncode)
            else:
                _log.error("the worker cannot be understood", exc_info=reading.exception())
        finally:
            reading.cancel()
            ending.cancel()
            self._end_all()

    async def _read(self) -> None:
        while True:
            report = protocol.decode_report(await self._socket.recv())
            if isinstance(report, StepReport):
                self._dispatch(report)

    def _dispatch(self, report: StepReport) -> None:
        for admission in report.admissions:
            if generation := self._generations.get(admission.request_id):
                generation.admit(admission)
        events: dict[str, list[TokenEvent]] = {}
        for event in report.events:
            events.setdefault(event.request_id, []).append(event)
        for request_id, its_events in events.items():
            if generation := self._generations.get(request_id):
                generation.deliver(its_events)
        for failure in report.failures:
            if generation := self._generations.get(failure.request_id):
                generation.fail(InternalError(failure.detail))
        for update in report.training:
            if arrived := self._trainings.get(update.concept):
                arrived.put_nowait(update)


class WorkerGeneration:
    """One request in the worker. Ends when each of its choices has ended or was aborted."""

    def __init__(self, engine: WorkerEngine, request: GenerationRequest) -> None:
        self._engine = engine
        self._request_id = request.request_id
        self._running = set(range(request.n))
        self._arrived: asyncio.Queue[list[TokenEvent] | ApiError] = asyncio.Queue()
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aiter__(self) -> AsyncGenerator[list[TokenEvent], None]:
        try:
            while self._running or not self._arrived.empty():
                arrived = await self._arrived.get()
                if isinstance(arrived, ApiError):
                    raise arrived
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
        self._arrived.put_nowait([])  # wakes the iteration, so that it sees that nothing runs

    def admit(self, admission: Admission) -> None:
        if admission.refusal is None:
            self.admitted.set_result(None)
        else:
            self.fail(_refusal(admission))

    def deliver(self, events: list[TokenEvent]) -> None:
        self._arrived.put_nowait([event for event in events if event.index in self._running])
        if not self.begun.done():
            self.begun.set_result(None)
        if ended := {event.index for event in events if event.finish_reason}:
            self._end(ended)

    def fail(self, error: ApiError) -> None:
        self._end(self._running)
        if not self.admitted.done():
            self.admitted.set_exception(error)
            return
        self._arrived.put_nowait(error)
        if not self.begun.done():
            self.begun.set_exception(error)
            self.begun.exception()  # It may be that nobody waits for it.

    def _end(self, choices: set[int]) -> None:
        ending = self._running & choices
        if ending:
            self._running = self._running - ending
            self._engine.release(self._request_id, len(ending), last=not self._running)


def _refusal(admission: Admission) -> ApiError:
    assert admission.refusal is not None  # noqa: S101 - for the type checker
    message, param = _REFUSALS[admission.refusal]
    if admission.detail:
        message += f": {shorten(admission.detail)}"
    return ApiError(ErrorCode(admission.refusal.value), message, param)


async def _start_process(endpoint: str, config: EngineConfig) -> asyncio.subprocess.Process:
    """In a session of its own: Ctrl-C in a terminal is for the gateway alone."""
    # -P: a folder called `inference` in the working directory is not ours.
    command = (sys.executable, "-P", "-m", "inference.worker", endpoint)
    # What it reads in every step are weights and contexts: in large pages they are found faster.
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}
    if config.quantization == "int8":
        # It computes in threads of its own, which OpenMP's would disturb while they wait for work.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
    return await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, start_new_session=True, env=environment
    )


async def _configure(
    process: asyncio.subprocess.Process, socket: zmq.asyncio.Socket, config: EngineConfig
) -> ModelInfo:
    """The configuration goes in by stdin, which stays open: where it ends, so does the worker."""
    assert process.stdin is not None  # noqa: S101 - for the type checker
    process.stdin.write(msgspec.json.encode(config) + b"\n")
    report = await _first_report(process, socket)
    if isinstance(report, protocol.Started):
        return report.model
    if isinstance(report, protocol.StartFailed):
        with suppress(TimeoutError):  # It is about to end: a signal would only disturb it.
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        raise StartError(report.message)
    raise StartError(f"the worker ended while it was starting (status {process.returncode})")


async def _first_report(
    process: asyncio.subprocess.Process, socket: zmq.asyncio.Socket
) -> protocol.Report | None:
    """None when the process ends without one. Loading a model may take any time."""
    frame = asyncio.ensure_future(socket.recv())
    ended = asyncio.create_task(process.wait())
    try:
        await asyncio.wait({frame, ended}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({frame}, timeout=_LAST_WORDS_SECONDS)
        return protocol.decode_report(frame.result()) if frame.done() else None
    finally:
        frame.cancel()
        ended.cancel()


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()

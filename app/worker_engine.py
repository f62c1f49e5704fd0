"""The Engine over a worker process and its socket. Knows the protocol's messages; knows no HTTP."""

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

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

_Result = TypeVar("_Result")

_STOP_SECONDS = 5.0
_LAST_WORDS_SECONDS = 1.0
_SILENCE_SECONDS = 15.0
"""A worker says every second that it lives."""
_DOUBT_SECONDS = 2.0
"""Had this process itself been stopped, then what the worker said meanwhile is read by now."""
_MAX_UNREAD = 2**16
"""Tokens of a request, and alternatives of tokens, that came and that nobody has taken: some 10 MB."""

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
    directory = tempfile.TemporaryDirectory(prefix="tiller-")  # only this user may enter it
    with directory, zmq.asyncio.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.set_hwm(0)
        socket.linger = 0
        endpoint = f"ipc://{directory.name}/worker.sock"
        socket.bind(endpoint)
        process = await _start_process(endpoint, config)
        try:
            await _configure(process, socket, config)
            directory.cleanup()  # They are connected. However this process ends, no file is left behind.
            engine = WorkerEngine(socket, await _started(process, socket))
            serving = asyncio.create_task(engine.serve(process))
            try:
                yield engine
            finally:
                serving.cancel()
        finally:
            await _stop(process)


class WorkerEngine:
    """Commands go out as they come; reports are dispatched to the generations and trainings they concern."""

    def __init__(self, socket: zmq.asyncio.Socket, model: ModelInfo) -> None:
        self._socket = socket
        self._model = model
        self._generations: dict[str, WorkerGeneration] = {}
        self._trainings: dict[str, asyncio.Queue[TrainingUpdate | ApiError]] = {}
        self._available = True
        self.lost = asyncio.Event()
        """Set once the worker has ended, or is as good as that."""

    @property
    def model(self) -> ModelInfo:
        return self._model

    @property
    def available(self) -> bool:
        return self._available

    @property
    def load(self) -> int:
        """How many requests are open."""
        return len(self._generations)

    async def submit(self, request: GenerationRequest) -> "WorkerGeneration":
        if not self._available:
            raise EngineUnavailable
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

    def release(self, request_id: str) -> None:
        """What the worker may still say of the request is ignored."""
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
        assert process.stdout is not None  # noqa: S101 - for the type checker
        reading = asyncio.create_task(self._read())
        ending = asyncio.create_task(process.wait())
        listening = asyncio.create_task(_listen(process.stdout))
        tasks = {reading, ending, listening}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                _log.error("the worker has ended with status %s", process.returncode)
            elif listening.done():
                _log.error("the worker has given no sign of life for %g seconds", _SILENCE_SECONDS)
            else:
                _log.error("the worker cannot be understood", exc_info=reading.exception())
            if process.returncode is None:
                process.kill()  # It would not listen.
        finally:
            for task in tasks:
                task.cancel()
            self._end_all()
            self.lost.set()

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
        self._unread = 0
        self._weight = 1 + (request.sampling.top_logprobs or 0)
        self._arrived: asyncio.Queue[list[TokenEvent] | ApiError] = asyncio.Queue()
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

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
        self._arrived.put_nowait([])  # wakes the iteration, so that it sees that nothing runs

    def admit(self, admission: Admission) -> None:
        if admission.refusal is None:
            self.admitted.set_result(None)
        else:
            self.fail(_refusal(admission))

    def deliver(self, events: list[TokenEvent]) -> None:
        events = [event for event in events if event.index in self._running]
        self._arrived.put_nowait(events)
        self._unread += self._weight * len(events)
        if ended := {event.index for event in events if event.finish_reason}:
            self._end(ended)
        if self._unread > _MAX_UNREAD and self._running:
            self.abort()
            self._arrived.put_nowait(ApiError(ErrorCode.REQUEST_TIMEOUT, "the answer was read too slowly"))

    def fail(self, error: ApiError) -> None:
        self._end(self._running)
        if self.admitted.done():
            self._arrived.put_nowait(error)
        else:
            self.admitted.set_exception(error)

    def _end(self, choices: set[int]) -> None:
        self._running = self._running - choices
        if not self._running:
            self._engine.release(self._request_id)


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
    # Where its stdin ends, so does the worker; by its stdout it says that it lives.
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=environment,
    )


async def _configure(
    process: asyncio.subprocess.Process, socket: zmq.asyncio.Socket, config: EngineConfig
) -> None:
    """Returns once the worker is connected."""
    await _while_starting(process, socket.send(msgspec.json.encode(config)))


async def _started(process: asyncio.subprocess.Process, socket: zmq.asyncio.Socket) -> ModelInfo:
    """Loading a model may take any time. Raises StartError."""
    report = protocol.decode_report(await _while_starting(process, socket.recv()))
    if isinstance(report, protocol.Started):
        return report.model
    with suppress(TimeoutError):  # It is about to end: a signal would only disturb it.
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    assert isinstance(report, protocol.StartFailed)  # noqa: S101 - for the type checker
    raise StartError(report.message)


async def _while_starting(process: asyncio.subprocess.Process, awaited: Awaitable[_Result]) -> _Result:
    """Raises StartError if the process ends first."""
    result = asyncio.ensure_future(awaited)
    ended = asyncio.create_task(process.wait())
    try:
        await asyncio.wait({result, ended}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({result}, timeout=_LAST_WORDS_SECONDS)
        if result.done():
            return result.result()
        raise StartError(f"the worker ended while it was starting (status {process.returncode})")
    finally:
        result.cancel()
        ended.cancel()


async def _listen(beats: asyncio.StreamReader) -> None:
    """Returns when the worker has said nothing for too long."""
    patience = _SILENCE_SECONDS
    while True:
        try:
            async with asyncio.timeout(patience):
                said = await beats.read(4096)
        except TimeoutError:
            if patience == _DOUBT_SECONDS:
                return
            patience = _DOUBT_SECONDS
        else:
            if not said:  # It is ending, which is seen elsewhere, unless it cannot even end.
                await asyncio.sleep(_SILENCE_SECONDS)
                return
            patience = _SILENCE_SECONDS


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Lets it end its step first. A process that a device holds cannot even be killed."""
    for end in (process.terminate, process.kill):
        if process.returncode is None:
            end()
        # Not wait_for, which may swallow a cancellation before Python 3.12.
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
            return
    _log.error("the worker, process %d, cannot be killed", process.pid)

"""Connects to a worker that was started on its own, perhaps on another host."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import msgspec
import zmq
import zmq.asyncio

from app import __version__
from app.errors import StartError
from app.workers.connection_watch import ConnectionWatch
from app.workers.text_file_cache import TextFileCache
from app.workers.timing import Timing
from app.workers.worker_engine import WorkerEngine
from inference.interface import protocol
from inference.interface.protocol import (
    PING_SECONDS,
    FetchFile,
    FileContent,
    Hello,
    ModelInfo,
    Ping,
    Report,
    Started,
    StartFailed,
)
from inference.interface.worker_key import WorkerKey

_log = logging.getLogger(__name__)

_HEARTBEAT_MILLISECONDS = 1000
_SILENT_MILLISECONDS = 4000
"""A worker whose host sends nothing for this long is lost. ZeroMQ answers also while the worker computes."""
_FIRST_LINE_SECONDS, _LINE_SECONDS = 3.0, 30.0
"""When the log says what the gateway waits for."""


@dataclass
class StandingWorker:
    """Implements app.workers.source.WorkerSource: a connection to always the same address."""

    model: str
    """The name of the model. A worker with another one refuses this gateway."""
    address: str
    """`tcp://HOST:PORT` or `ipc://PATH`."""
    key: WorkerKey | None
    """None: without encryption."""
    files: TextFileCache
    capacity: int = 0

    @property
    def name(self) -> str:
        return f"the worker at {self.address}"

    @asynccontextmanager
    async def run(self, timing: Timing) -> AsyncIterator[WorkerEngine]:  # noqa: ARG002 - ZeroMQ has its own
        """Waits for the worker without a time limit. Raises StartError if it refuses this gateway."""
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as socket:
            self._prepare(socket)
            watch = ConnectionWatch(socket)
            socket.connect(self.address)
            try:
                started = await self._wait_for_start(socket, watch)
                model = await self._with_files(socket, watch, started)
                self.capacity = started.capacity
                engine = WorkerEngine(socket, model, started.capacity)
                tasks = [
                    asyncio.create_task(engine.serve(partial(self._wait_for_loss, watch))),
                    asyncio.create_task(_ping(engine)),
                ]
                try:
                    yield engine
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.wait(tasks)
            finally:
                watch.close()

    def keep(self, model: ModelInfo) -> None:
        """Nothing to do: the worker decides on its model."""

    def _prepare(self, socket: zmq.asyncio.Socket) -> None:
        socket.set_hwm(0)
        socket.linger = 0
        socket.ipv6 = True
        socket.identity = uuid.uuid4().bytes
        socket.heartbeat_ivl = _HEARTBEAT_MILLISECONDS
        socket.heartbeat_timeout = _SILENT_MILLISECONDS
        if self.key is not None:
            socket.curve_publickey, socket.curve_secretkey = self.key.public, self.key.secret
            socket.curve_serverkey = self.key.public

    async def _wait_for_start(self, socket: zmq.asyncio.Socket, watch: ConnectionWatch) -> Started:
        """Waits until the worker answers. Raises StartError if it refuses this gateway."""
        answer = asyncio.ensure_future(socket.recv())
        greeting = asyncio.create_task(self._greet(socket, watch))
        complaining = asyncio.create_task(self._complain(watch))
        try:
            await asyncio.wait({answer, greeting}, return_when=asyncio.FIRST_COMPLETED)
            greeting.cancel()
            await asyncio.wait({greeting})  # only one task at a time may watch
            await watch.catch_up()
            return self._accepted(protocol.decode_report(answer.result()))
        except msgspec.DecodeError as error:
            raise StartError(f"{self.name} speaks another protocol: {error}") from None
        finally:
            for waiting in (answer, greeting, complaining):
                waiting.cancel()

    async def _greet(self, socket: zmq.asyncio.Socket, watch: ConnectionWatch) -> None:
        """Says Hello on each new connection, without an end."""
        greeted = 0
        while True:
            await watch.next()
            if watch.count > greeted:
                greeted = watch.count
                await socket.send(protocol.encode(Hello(__version__, self.model)))

    def _accepted(self, report: Report) -> Started:
        if isinstance(report, Started):
            return report
        reason = report.message if isinstance(report, StartFailed) else "it sends reports without a start"
        raise StartError(f"{self.name} refuses this server: {reason}")

    async def _complain(self, watch: ConnectionWatch) -> None:
        """Logs now and then what the gateway waits for."""
        seconds = _FIRST_LINE_SECONDS
        while True:
            await asyncio.sleep(seconds)
            reason = watch.problem or ("it loads its model" if watch.count else "there is no connection yet")
            _log.warning("waiting for %(worker)s: %(reason)s", {"worker": self.name, "reason": reason})
            seconds = _LINE_SECONDS

    async def _wait_for_loss(self, watch: ConnectionWatch) -> str:
        """Returns once the connection is lost, with a line for the log."""
        await watch.wait_for_loss()
        return f"the connection to {self.name} is lost"

    async def _with_files(
        self, socket: zmq.asyncio.Socket, watch: ConnectionWatch, started: Started
    ) -> ModelInfo:
        """The model, with the directory of its tokenizer and chat template here. Raises StartError."""
        getting = asyncio.create_task(self.files.get(started.files, partial(self._fetch, socket)))
        losing = asyncio.create_task(watch.wait_for_loss())
        try:
            await asyncio.wait({getting, losing}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                raise StartError(f"{self.name} was lost while it sent the tokenizer")
            return msgspec.structs.replace(started.model, directory=str(getting.result()))
        finally:
            getting.cancel()
            losing.cancel()
            await asyncio.wait({getting, losing})

    async def _fetch(self, socket: zmq.asyncio.Socket, sha256: str) -> bytes:
        """One of the worker's files. Raises StartError."""
        await socket.send(protocol.encode(FetchFile(sha256)))
        while True:
            report = protocol.decode_report(await socket.recv())
            if isinstance(report, FileContent) and report.sha256 == sha256:
                return report.content
            if isinstance(report, StartFailed):
                self._accepted(report)


async def _ping(engine: WorkerEngine) -> None:
    with suppress(zmq.ZMQError):  # the socket is closed
        while True:
            await asyncio.sleep(PING_SECONDS)
            engine.send(Ping())

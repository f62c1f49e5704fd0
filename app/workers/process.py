"""Starts and stops a worker process and opens the socket to it. Knows no requests."""

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

import msgspec
import zmq
import zmq.asyncio

from app.errors import StartError
from app.workers.liveness import wait_for_silence
from app.workers.timing import Timing
from app.workers.worker_engine import WorkerEngine
from inference.interface import protocol
from inference.interface.config import EngineConfig
from inference.interface.protocol import ModelInfo

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_SPINS = "3000"
"""How often an OpenMP thread looks for work before it sleeps: longer than from one operation to the next."""
_TERMINATE_SECONDS = 2.0
"""Time for a worker to end after SIGTERM. Short, because nobody waits for its results any more."""
_EXIT_SECONDS = 5.0
"""Time for a worker to end after StartFailed or SIGKILL."""
_LAST_MESSAGE_SECONDS = 1.0
"""Time for the last message of a worker that has ended to arrive."""


@asynccontextmanager
async def run_worker(config: EngineConfig, timing: Timing = Timing()) -> AsyncIterator[WorkerEngine]:
    """Starts a worker and yields its engine once the model is loaded. Stops the worker at the end.

    Raises StartError if the worker cannot start.
    """
    directory = tempfile.TemporaryDirectory(prefix="tiller-")  # only this user can access it
    with directory, zmq.asyncio.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.set_hwm(0)
        socket.linger = 0
        endpoint = f"ipc://{directory.name}/worker.sock"
        socket.bind(endpoint)
        process = await _start_process(endpoint, config)
        try:
            await _configure(process, socket, config, timing)
            directory.cleanup()  # Both ends are connected. No exit of this process leaves a file.
            model = await _wait_for_start(process, socket, timing)
            engine = WorkerEngine(socket, model, config.max_running + config.max_queued)
            engine.pid = process.pid
            serving = asyncio.create_task(engine.serve(partial(wait_for_loss, process, timing)))
            try:
                yield engine
            finally:
                if engine.lost.is_set() and process.returncode is None:
                    process.kill()  # A worker in this state may ignore SIGTERM.
                serving.cancel()
        finally:
            await _stop(process)


class ChildWorker:
    """Implements app.workers.source.WorkerSource: one process after the other, on this host."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config

    name = "the worker"

    @property
    def capacity(self) -> int:
        return self._config.max_running + self._config.max_queued

    def run(self, timing: Timing) -> AbstractAsyncContextManager[WorkerEngine]:
        return run_worker(self._config, timing)

    def keep(self, model: ModelInfo) -> None:
        """Later workers load the files that the first one found, even if the source was a hub id."""
        log = self._config.log.without_bars()
        self._config = msgspec.structs.replace(self._config, source=model.directory, log=log)


async def wait_for_loss(process: asyncio.subprocess.Process, timing: Timing) -> str:
    """Returns once the process ends or freezes, with the reason. Kills a frozen one."""
    ending = asyncio.create_task(process.wait())
    listening = asyncio.create_task(wait_for_silence(process, timing.frozen, timing.silent, timing.tick))
    try:
        await asyncio.wait({ending, listening}, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            return f"the worker has ended with status {process.returncode}"
        process.kill()  # A worker in this state may ignore SIGTERM.
        return f"the worker has sent no heartbeat for {listening.result():g} seconds"
    finally:
        ending.cancel()
        listening.cancel()


async def _start_process(endpoint: str, config: EngineConfig) -> asyncio.subprocess.Process:
    """Starts the worker in its own session, so that Ctrl-C in a terminal reaches only the gateway."""
    # -P: do not import a folder called `inference` from the working directory.
    command = (sys.executable, "-P", "-m", "inference.worker", endpoint)
    # The worker ends when its stdin is closed, and writes its heartbeat to stdout.
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=environment_of(config),
    )


def environment_of(config: EngineConfig) -> dict[str, str]:
    """The environment variables of a worker."""
    # Every step reads all weights and KV cache blocks: large pages cause fewer TLB misses.
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}
    if config.quantization == "integer":
        # The integer back end has its own threads. OpenMP threads that spin for work would slow them down.
        environment.setdefault("OMP_WAIT_POLICY", "passive")
    elif "OMP_WAIT_POLICY" not in os.environ:
        # Without a limit, a thread spins for milliseconds while another one waits for its processor.
        environment.setdefault("GOMP_SPINCOUNT", _SPINS)
    return environment


async def _configure(
    process: asyncio.subprocess.Process, socket: zmq.asyncio.Socket, config: EngineConfig, timing: Timing
) -> None:
    """Sends the configuration. Returns once the worker is connected. Raises StartError."""
    await _while_starting(process, socket.send(msgspec.json.encode(config)), timing)


async def _wait_for_start(
    process: asyncio.subprocess.Process, socket: zmq.asyncio.Socket, timing: Timing
) -> ModelInfo:
    """Returns once the model is loaded. No time limit while the heartbeat goes on. Raises StartError."""
    report = protocol.decode_report(await _while_starting(process, socket.recv(), timing))
    if isinstance(report, protocol.Started):
        return report.model
    with suppress(TimeoutError):  # The worker ends by itself; a signal would interrupt that.
        async with asyncio.timeout(_EXIT_SECONDS):
            await process.wait()
    assert isinstance(report, protocol.StartFailed)  # noqa: S101 - for the type checker
    raise StartError(report.message)


async def _while_starting(
    process: asyncio.subprocess.Process, awaited: Awaitable[_Result], timing: Timing
) -> _Result:
    """Awaits `awaited`. Raises StartError if the process ends or freezes first."""
    result = asyncio.ensure_future(awaited)
    ended = asyncio.create_task(process.wait())
    silence = asyncio.create_task(
        wait_for_silence(process, timing.start_silence, timing.start_silence, timing.tick)
    )
    try:
        await asyncio.wait({result, ended, silence}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({result}, timeout=_LAST_MESSAGE_SECONDS)
        if result.done():
            return result.result()
        if silence.done():
            raise StartError(f"the starting worker sent no heartbeat for {silence.result():g} seconds")
        raise StartError(f"the worker ended while it was starting (status {process.returncode})")
    finally:
        for task in (result, ended, silence):
            task.cancel()
        await asyncio.wait({silence})  # Only one task at a time may read the worker's stdout.


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Sends SIGTERM, then SIGKILL. A process that hangs in a device driver survives even SIGKILL."""
    for send_signal, seconds in (process.terminate, _TERMINATE_SECONDS), (process.kill, _EXIT_SECONDS):
        if process.returncode is None:
            send_signal()
        # Not asyncio.wait_for: before Python 3.12 it can swallow a cancellation.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await process.wait()
            return
    _log.error("the worker process %d cannot be killed", process.pid)

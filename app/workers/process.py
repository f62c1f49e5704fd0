"""A worker process from its start to its end, and the socket to it. Knows nothing of requests."""

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
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

_PATIENCE_SECONDS = 2.0
"""For a worker to end by itself: whatever it computes, nobody waits for it any more."""
_END_SECONDS = 5.0
_LAST_WORDS_SECONDS = 1.0


@asynccontextmanager
async def run_worker(config: EngineConfig, timing: Timing = Timing()) -> AsyncIterator[WorkerEngine]:
    """An engine that has loaded its model; its process ends with the context. Raises StartError."""
    directory = tempfile.TemporaryDirectory(prefix="tiller-")  # only this user may enter it
    with directory, zmq.asyncio.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.set_hwm(0)
        socket.linger = 0
        endpoint = f"ipc://{directory.name}/worker.sock"
        socket.bind(endpoint)
        process = await _start_process(endpoint, config)
        try:
            await _configure(process, socket, config, timing)
            directory.cleanup()  # They are connected. However this process ends, no file is left behind.
            model = await _started(process, socket, timing)
            engine = WorkerEngine(socket, model, config.max_running + config.max_queued, timing)
            serving = asyncio.create_task(engine.serve(process))
            try:
                yield engine
            finally:
                serving.cancel()
        finally:
            await _stop(process)


async def _start_process(endpoint: str, config: EngineConfig) -> asyncio.subprocess.Process:
    """In a session of its own: Ctrl-C in a terminal is for the gateway alone."""
    # -P: a folder called `inference` in the working directory is not ours.
    command = (sys.executable, "-P", "-m", "inference.worker", endpoint)
    # What it reads in every step are weights and contexts: in large pages they are found faster.
    environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}
    if config.quantization == "integer":
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
    process: asyncio.subprocess.Process, socket: zmq.asyncio.Socket, config: EngineConfig, timing: Timing
) -> None:
    """Returns once the worker is connected."""
    await _while_starting(process, socket.send(msgspec.json.encode(config)), timing)


async def _started(
    process: asyncio.subprocess.Process, socket: zmq.asyncio.Socket, timing: Timing
) -> ModelInfo:
    """Loading a model may take any time, if the worker says that it lives. Raises StartError."""
    report = protocol.decode_report(await _while_starting(process, socket.recv(), timing))
    if isinstance(report, protocol.Started):
        return report.model
    with suppress(TimeoutError):  # It is about to end: a signal would only disturb it.
        async with asyncio.timeout(_END_SECONDS):
            await process.wait()
    assert isinstance(report, protocol.StartFailed)  # noqa: S101 - for the type checker
    raise StartError(report.message)


async def _while_starting(
    process: asyncio.subprocess.Process, awaited: Awaitable[_Result], timing: Timing
) -> _Result:
    """Raises StartError if the process ends or freezes first."""
    result = asyncio.ensure_future(awaited)
    ended = asyncio.create_task(process.wait())
    silence = asyncio.create_task(
        wait_for_silence(process, timing.start_silence, timing.start_silence, timing.tick)
    )
    try:
        await asyncio.wait({result, ended, silence}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({result}, timeout=_LAST_WORDS_SECONDS)
        if result.done():
            return result.result()
        if silence.done():
            raise StartError(f"the worker has frozen while it was starting, for {silence.result():g} seconds")
        raise StartError(f"the worker ended while it was starting (status {process.returncode})")
    finally:
        for task in (result, ended, silence):
            task.cancel()
        await asyncio.wait({silence})  # There must be one at most that reads.


async def _stop(process: asyncio.subprocess.Process) -> None:
    """A process that a device holds cannot even be killed."""
    for end, seconds in (process.terminate, _PATIENCE_SECONDS), (process.kill, _END_SECONDS):
        if process.returncode is None:
            end()
        # Not wait_for, which may swallow a cancellation before Python 3.12.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await process.wait()
            return
    _log.error("the worker, process %d, cannot be killed", process.pid)

"""Detects a frozen worker process by the heartbeat on its stdout. Kills nothing."""

import asyncio
from pathlib import Path

from inference.interface.process_status import ProcessStatus


async def wait_for_silence(
    process: asyncio.subprocess.Process, frozen_seconds: float, busy_seconds: float, tick: float
) -> float:
    """Waits until the worker has been silent for too long. Returns the seconds of silence.

    `frozen_seconds`: limit for a worker that neither computes nor waits for the disk. `busy_seconds`: limit
    for any other worker, because the computation may delay its heartbeat. `tick`: seconds between two checks.

    Silence is counted in this process's own ticks, and each tick reads pending heartbeats first. So time
    does not count while both processes are stopped, this process is stopped, or the event loop is busy.
    """
    assert process.stdout is not None  # noqa: S101 - for the type checker
    silent = frozen = 0.0
    status = _status(process.pid)
    while silent < busy_seconds and frozen < frozen_seconds:
        beating = await _receives_heartbeat(process.stdout, tick)
        before, status = status, _status(process.pid)
        working = status.processor_time != before.processor_time or status.state == "D"
        silent = 0.0 if beating else silent + tick
        frozen = 0.0 if beating or working else frozen + tick
    return silent


async def _receives_heartbeat(stdout: asyncio.StreamReader, tick: float) -> bool:
    """Whether a heartbeat arrives within a tick."""
    try:
        async with asyncio.timeout(tick):
            if await stdout.read(4096):
                return True
            await asyncio.sleep(tick)  # end of file: the worker is ending, or hangs while it ends
    except TimeoutError:
        pass
    return False


def _status(pid: int) -> ProcessStatus:
    return ProcessStatus(Path(f"/proc/{pid}/stat"))

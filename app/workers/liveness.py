"""Whether a worker process lives, judged by the signs of life on its stdout. Ends nothing."""

import asyncio
from pathlib import Path

from inference.interface.process_status import ProcessStatus


async def wait_for_silence(
    process: asyncio.subprocess.Process, frozen_seconds: float, busy_seconds: float, tick: float
) -> float:
    """Returns when the worker has been silent for too long, and for how many seconds.

    `frozen_seconds` is the limit for a worker that neither computes nor waits for the disk; `busy_seconds`
    for any other, since something may hold up its signs of life. `tick` seconds pass between two looks.

    Silence is counted in this process's own ticks. So a stop of both processes, a stop of this process
    alone, or a busy event loop does not count: what the worker wrote meanwhile is read first.
    """
    assert process.stdout is not None  # noqa: S101 - for the type checker
    silent = frozen = 0.0
    status = _status(process.pid)
    while silent < busy_seconds and frozen < frozen_seconds:
        heard = await _hears(process.stdout, tick)
        before, status = status, _status(process.pid)
        works = status.processor_time != before.processor_time or status.state == "D"
        silent = 0.0 if heard else silent + tick
        frozen = 0.0 if heard or works else frozen + tick
    return silent


async def _hears(signs: asyncio.StreamReader, tick: float) -> bool:
    """Whether a sign of life arrives within a tick."""
    try:
        async with asyncio.timeout(tick):
            if await signs.read(4096):
                return True
            await asyncio.sleep(tick)  # The worker closed its end: it is ending, or cannot even do that.
    except TimeoutError:
        pass
    return False


def _status(pid: int) -> ProcessStatus:
    return ProcessStatus(Path(f"/proc/{pid}/stat"))

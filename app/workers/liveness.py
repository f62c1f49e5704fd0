"""Whether a worker process lives, by what it says of it on its stdout. Knows no messages and ends nothing."""

import asyncio
from pathlib import Path

_TICK_SECONDS = 0.5
"""A worker beats twice a second."""
_JIFFIES = slice(11, 13)
"""Of the fields of /proc/PID/stat after the process's name: its processor time."""


async def wait_for_silence(
    process: asyncio.subprocess.Process, frozen_seconds: float, busy_seconds: float
) -> float:
    """Returns when the worker has been silent too long, and for how many seconds.

    While it is silent, but computes or waits for the disk, `busy_seconds` count: its beats may be held up.
    Silence is counted in this process's own turns of waiting. So neither a stop of both, nor one of this
    process alone, nor a busy event loop is any: what the worker said meanwhile is heard first.
    """
    assert process.stdout is not None  # noqa: S101 - for the type checker
    silent = frozen = 0.0
    used = _processor_time(process.pid)
    while silent < busy_seconds and frozen < frozen_seconds:
        heard = await _hears(process.stdout)
        before, used = used, _processor_time(process.pid)
        silent = 0.0 if heard else silent + _TICK_SECONDS
        frozen = 0.0 if heard or used != before or _waits_for_disk(process.pid) else frozen + _TICK_SECONDS
    return silent


async def _hears(beats: asyncio.StreamReader) -> bool:
    """Whether there is a beat within a tick."""
    try:
        async with asyncio.timeout(_TICK_SECONDS):
            if await beats.read(4096):
                return True
            await asyncio.sleep(_TICK_SECONDS)  # It has closed its end: it is ending, or cannot even do that.
    except TimeoutError:
        pass
    return False


def _processor_time(pid: int) -> tuple[str, ...]:
    return tuple(_status(pid)[_JIFFIES])


def _waits_for_disk(pid: int) -> bool:
    return _status(pid)[:1] == ["D"]


def _status(pid: int) -> list[str]:
    """What only Linux tells, or nothing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []

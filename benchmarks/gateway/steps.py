"""When the stand-in engines step: the load client tells them, a byte for each step through a named pipe."""

import asyncio
import os
from pathlib import Path

_LEAD = 2
"""Steps on their way when a gateway is to be kept busy: one that it works on, and the next one."""
_AT_ONCE = 4096


def open_pipe(file: Path) -> int:
    """The engine's end, for `take`. It does not wait for the other end, and does not end with it."""
    return os.open(file, os.O_RDWR | os.O_NONBLOCK)


def take(pipe: int) -> int:
    """How many steps have been asked for since the last time."""
    try:
        return len(os.read(pipe, _AT_ONCE))
    except BlockingIOError:
        return 0


class StepClock:
    """Lets the engine step every `interval` seconds; with 0, as fast as `streams` streams arrive."""

    def __init__(self, file: Path, interval: float, streams: int = 1) -> None:
        self._pipe = os.open(file, os.O_WRONLY | os.O_NONBLOCK)
        self._interval = interval
        self._streams = streams
        self._running = False
        self._arrived = 0
        self._timer: asyncio.TimerHandle | None = None
        self.steps = 0
        """How many were asked for."""

    def start(self) -> None:
        """Nothing that arrived or was asked for earlier counts."""
        self._running = True
        self.steps = 0
        if self._interval:
            self._tick(asyncio.get_running_loop().time())
        else:
            self.arrive(0)

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()
        os.close(self._pipe)

    def arrive(self, tokens: int) -> None:
        """So many more tokens have reached their clients, of all streams together."""
        if self._running and not self._interval:
            self._arrived += tokens
            while self.steps * self._streams < self._arrived + _LEAD * self._streams:
                self.step()

    def _tick(self, due: float) -> None:
        self.step()
        loop = asyncio.get_running_loop()
        # Like an engine that was held up, it does not make up for steps that it has missed.
        due = max(due + self._interval, loop.time())
        self._timer = loop.call_at(due, self._tick, due)

    def step(self) -> None:
        """One more, whatever the clock says."""
        os.write(self._pipe, b".")
        self.steps += 1

"""Makes the stand-in engines step: the load client writes one byte for each step into a named pipe."""

import asyncio
import os
from pathlib import Path

_LEAD = 2
"""Number of steps ahead that keep a gateway busy: the one that it works on, and the next one."""
_AT_ONCE = 4096


def open_pipe(file: Path) -> int:
    """Opens the engine's end, for `take`. It neither waits for a writer nor ends when the writer closes."""
    return os.open(file, os.O_RDWR | os.O_NONBLOCK)


def take(pipe: int) -> int:
    """Number of steps requested since the last call."""
    try:
        return len(os.read(pipe, _AT_ONCE))
    except BlockingIOError:
        return 0


class StepClock:
    """Makes the engine step every `interval` seconds; if 0, once for each `streams` arrived tokens."""

    def __init__(self, file: Path, interval: float, streams: int = 1) -> None:
        self._pipe = os.open(file, os.O_WRONLY | os.O_NONBLOCK)
        self._interval = interval
        self._streams = streams
        self._running = False
        self._arrived = 0
        self._timer: asyncio.TimerHandle | None = None
        self.steps = 0
        """Number of requested steps."""

    def start(self) -> None:
        """Ignores earlier arrivals, and counts steps from here on."""
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
        """Reports that `tokens` more tokens have reached clients, over all streams."""
        if self._running and not self._interval:
            self._arrived += tokens
            while self.steps * self._streams < self._arrived + _LEAD * self._streams:
                self.step()

    def _tick(self, due: float) -> None:
        self.step()
        loop = asyncio.get_running_loop()
        # A delayed clock does not catch up on missed steps. An engine that was delayed does not either.
        due = max(due + self._interval, loop.time())
        self._timer = loop.call_at(due, self._tick, due)

    def step(self) -> None:
        """Requests one step at once."""
        os.write(self._pipe, b".")
        self.steps += 1

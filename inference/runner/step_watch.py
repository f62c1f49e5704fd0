"""Whether a step hangs, judged by what its thread does and by the steps before it. Ends nothing."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.interface.process_status import ProcessStatus

_BLOCKED_SECONDS = 3.5
"""That a step may wait and compute nothing. Who waits for other threads' shares computes one, too."""
_LEAST_LIMIT_SECONDS = 20.0
"""Any step may compile something that those before it did not need."""
_MANY_TIMES = 20.0
_NEGLIGIBLE_SECONDS = 0.001
"""Of processor time, between two beats."""


class StepWatch:
    """Told by the loop what it does, and by another thread that time passes.

    A step hangs if it is computed on the processor, but its thread only waits, and not for the disk; or if it
    lasts many times as long as the longest before it, and computes no more than the largest before it; or if
    it lasts longer than anything may. Time is counted in beats, not read off a clock, which goes on while the
    whole process is stopped.
    """

    def __init__(self, limit: float, computes_here: bool) -> None:
        """`limit`: seconds that any turn may last; `computes_here`: no other device does."""
        self._limit = limit
        self._activity = _Activity(threading.main_thread()) if computes_here else None
        # What the loop writes:
        self._turns = 0
        self._tokens = 0  # that are computed now; 0: nothing is
        self._most_tokens = 0  # of the steps in this turn
        self._largest = 0  # of the steps in turns before it
        # What the other thread writes:
        self._seen = 0
        self._lasting = 0.0
        self._computing = 0.0
        self._blocked = 0.0
        self._longest = 0.0  # that was computed in a turn before this one

    def turn(self) -> None:
        """The loop begins a turn."""
        self._largest = max(self._largest, self._most_tokens)
        self._most_tokens = 0
        self._turns += 1

    @contextmanager
    def computing(self, tokens: int) -> Iterator[None]:
        """Within, the main thread computes so many tokens, or waits for the device that does."""
        self._most_tokens = max(self._most_tokens, tokens)
        self._tokens = tokens
        try:
            yield
        finally:
            self._tokens = 0

    def beat(self, seconds: float) -> str | None:
        """So much time has passed since the last beat. Says what hangs; None: nothing does."""
        waiting = self._activity is not None and self._activity.is_waiting()
        if self._turns != self._seen:
            self._seen = self._turns
            self._longest = max(self._longest, self._computing)
            self._lasting = self._computing = self._blocked = 0.0
            return None
        self._lasting += seconds
        if not self._tokens:
            self._blocked = 0.0
            return self._too_long(self._lasting, self._limit)
        self._computing += seconds
        self._blocked = self._blocked + seconds if waiting else 0.0
        if self._blocked >= _BLOCKED_SECONDS:
            return f"a step has computed nothing for {self._blocked:g} seconds"
        return self._too_long(self._lasting, self._step_limit)

    @property
    def _step_limit(self) -> float:
        if self._tokens > self._largest:
            return self._limit
        return min(self._limit, max(_LEAST_LIMIT_SECONDS, _MANY_TIMES * self._longest))

    def _too_long(self, seconds: float, limit: float) -> str | None:
        return f"a step has not ended for {limit:g} seconds" if seconds >= limit else None


class _Activity:
    """What a thread has done since it was looked at last. Only Linux tells."""

    def __init__(self, thread: threading.Thread) -> None:
        self._status = Path(f"/proc/self/task/{thread.native_id}/stat")
        clock_of = getattr(time, "pthread_getcpuclockid", None)  # macOS has none
        self._clock: int | None = clock_of(thread.ident) if clock_of and thread.ident else None
        self._used = 0.0

    def is_waiting(self) -> bool:
        """It has computed nothing, and waits for something that is no disk."""
        if self._clock is None:
            return False
        before, self._used = self._used, time.clock_gettime(self._clock)
        return self._used - before < _NEGLIGIBLE_SECONDS and self._state() == "S"

    def _state(self) -> str:
        return ProcessStatus(self._status).state

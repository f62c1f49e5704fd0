"""Detects steps that hang, from the activity of the thread and from earlier steps. Ends no process itself."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.interface.process_status import ProcessStatus

_BLOCKED_SECONDS = 3.5
"""Limit for a step whose thread waits. The thread computes a share of each operation itself, so a step that
works never waits this long for the other threads."""
_LEAST_LIMIT_SECONDS = 20.0
"""Every step may last this long, because it may compile something that earlier steps did not need."""
_LONGEST_FACTOR = 20.0
"""A step may last this many times as long as the longest step before it."""
_NEGLIGIBLE_SECONDS = 0.001
"""Processor time between two beats that counts as no computation."""


class StepWatch:
    """Detects a step that hangs. The worker's loop reports what it does; another thread reports each beat.

    A step hangs in one of three cases. The CPU computes it, but its thread only waits, and not for the disk.
    Or it lasts many times as long as the longest step before it, and has no more tokens than the largest step
    before it. Or it exceeds the configured limit. Time is counted in beats, not read from a clock, because a
    clock goes on while the whole process is stopped.
    """

    def __init__(self, limit: float, computes_here: bool) -> None:
        """`limit`: the longest turn, in seconds. `computes_here`: whether the CPU computes the steps."""
        self._limit = limit
        self._activity = _Activity(threading.main_thread()) if computes_here else None
        # The loop writes these:
        self._turns = 0
        self._tokens = 0  # tokens that are computed now; 0: none
        self._turn_tokens = 0  # tokens of the largest step in this turn
        self._largest_tokens = 0  # tokens of the largest step in earlier turns
        # The other thread writes these:
        self._seen_turns = 0
        self._turn_seconds = 0.0
        self._computing_seconds = 0.0
        self._blocked_seconds = 0.0
        self._longest_seconds = 0.0  # computing time of the longest earlier turn

    def turn(self) -> None:
        """Marks the beginning of a turn of the loop."""
        self._largest_tokens = max(self._largest_tokens, self._turn_tokens)
        self._turn_tokens = 0
        self._turns += 1

    @contextmanager
    def computing(self, tokens: int) -> Iterator[None]:
        """While it lasts, the main thread computes `tokens` tokens, or waits for a device that does."""
        self._turn_tokens = max(self._turn_tokens, tokens)
        self._tokens = tokens
        try:
            yield
        finally:
            self._tokens = 0

    def beat(self, seconds: float) -> str | None:
        """Counts the `seconds` since the last beat. Returns a fault if a step hangs, else None."""
        # Each is read once, because the loop goes on meanwhile, and the turn last: if the two others are of
        # different turns, the turn has changed.
        largest_tokens, tokens, turns = self._largest_tokens, self._tokens, self._turns
        waiting = self._activity is not None and self._activity.is_waiting()
        if turns != self._seen_turns:
            self._seen_turns = turns
            self._longest_seconds = max(self._longest_seconds, self._computing_seconds)
            self._turn_seconds = self._computing_seconds = self._blocked_seconds = 0.0
            return None
        self._turn_seconds += seconds
        if not tokens:
            self._blocked_seconds = 0.0
            return self._too_long(self._turn_seconds, self._limit)
        self._computing_seconds += seconds
        self._blocked_seconds = self._blocked_seconds + seconds if waiting else 0.0
        if self._blocked_seconds >= _BLOCKED_SECONDS:
            return f"a step has computed nothing for {self._blocked_seconds:g} seconds"
        return self._too_long(self._turn_seconds, self._step_limit(tokens, largest_tokens))

    def _step_limit(self, tokens: int, largest_tokens: int) -> float:
        """There is no estimate for a step larger than any before; only the configured limit applies to it."""
        if tokens > largest_tokens:
            return self._limit
        return min(self._limit, max(_LEAST_LIMIT_SECONDS, _LONGEST_FACTOR * self._longest_seconds))

    def _too_long(self, seconds: float, limit: float) -> str | None:
        return f"a step has not finished within {limit:g} seconds" if seconds >= limit else None


class _Activity:
    """The activity of a thread since the last check. Known only on Linux."""

    def __init__(self, thread: threading.Thread) -> None:
        self._status = Path(f"/proc/self/task/{thread.native_id}/stat")
        clock_of = getattr(time, "pthread_getcpuclockid", None)  # macOS has none
        self._clock: int | None = clock_of(thread.ident) if clock_of and thread.ident else None
        self._used = 0.0

    def is_waiting(self) -> bool:
        """Whether the thread has computed nothing since the last check, and does not wait for the disk."""
        if self._clock is None:
            return False
        before, self._used = self._used, time.clock_gettime(self._clock)
        return self._used - before < _NEGLIGIBLE_SECONDS and self._state() == "S"

    def _state(self) -> str:
        return ProcessStatus(self._status).state

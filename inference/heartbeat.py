"""The worker's heartbeat: two bytes per second on a pipe, even during a step. Knows no engine."""

import faulthandler
import logging
import os
import threading
import time
from contextlib import suppress

from inference.runner.step_watch import StepWatch

_log = logging.getLogger("tiller.worker")

_INTERVAL_SECONDS = 0.5
_EXIT_STATUS = 70


class Heartbeat:
    """Beats in its own thread, so that the heartbeat goes on during a long step.

    When a step hangs, logs the traceback of every thread and ends the process. There is no other way to end a
    kernel that never returns, or the wait for a device that never answers.
    """

    def __init__(self, pipe: int) -> None:
        """`pipe`: a file descriptor."""
        self._pipe = pipe
        self._watch: StepWatch | None = None

    def start(self) -> None:
        threading.Thread(target=self._beat, daemon=True).start()

    def watch(self, steps: StepWatch) -> None:
        """Starts to check for steps that hang."""
        self._watch = steps

    def _beat(self) -> None:
        fault = None
        while fault is None:
            with suppress(OSError):  # The gateway has exited. The thread that reads stdin notices it too.
                os.write(self._pipe, b".")
            time.sleep(_INTERVAL_SECONDS)
            fault = self._watch.beat(_INTERVAL_SECONDS) if self._watch else None
        _log.critical("%s; the worker exits", fault)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(_EXIT_STATUS)

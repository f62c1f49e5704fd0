"""The worker's sign of life: two bytes a second, whatever it does. Knows no engine and no socket."""

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
    """Beats in a thread of its own, so that a long step is no silence.

    A step that hangs ends the process: a kernel that never returns and a device that never answers can be
    ended in no other way. Where every thread of it was is then in the log.
    """

    def __init__(self, pipe: int) -> None:
        """`pipe`: a file descriptor."""
        self._pipe = pipe
        self._watch: StepWatch | None = None

    def start(self) -> None:
        threading.Thread(target=self._beat, daemon=True).start()

    def watch(self, steps: StepWatch) -> None:
        """From now on there are steps."""
        self._watch = steps

    def _beat(self) -> None:
        fault = None
        while fault is None:
            with suppress(OSError):  # The gateway has gone; its end of stdin says so, too.
                os.write(self._pipe, b".")
            time.sleep(_INTERVAL_SECONDS)
            fault = self._watch.beat(_INTERVAL_SECONDS) if self._watch else None
        _log.critical("%s; the worker ends", fault)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(_EXIT_STATUS)

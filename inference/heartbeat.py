"""The worker's sign of life: a byte a second while its loop turns. Knows no engine and no socket."""

import faulthandler
import logging
import os
import threading
import time
from contextlib import suppress

_log = logging.getLogger("tiller.worker")

_INTERVAL_SECONDS = 1.0
_EXIT_STATUS = 70


class Heartbeat:
    """Beats in a thread of its own, so that a long step is no silence.

    A turn of the loop that lasts too long ends the process: a kernel that never returns and a device that
    never answers can be ended in no other way. Where every thread of it was is then in the log.
    """

    def __init__(self, pipe: int, limit: float) -> None:
        """`pipe`: a file descriptor; `limit`: how many seconds a turn may last, counted from now."""
        self._pipe = pipe
        self._limit = limit
        self._turned = time.monotonic()

    def start(self) -> None:
        threading.Thread(target=self._beat, daemon=True).start()

    def turn(self) -> None:
        """The loop begins a turn."""
        self._turned = time.monotonic()

    def _beat(self) -> None:
        while time.monotonic() - self._turned < self._limit:
            with suppress(OSError):  # The gateway has gone; its end of stdin says so, too.
                os.write(self._pipe, b".")
            time.sleep(_INTERVAL_SECONDS)
        _log.critical("a step has not ended for %g seconds; the worker ends", self._limit)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(_EXIT_STATUS)

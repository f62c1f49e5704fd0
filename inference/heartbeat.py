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
        """`pipe`: a file descriptor; `limit`: how many seconds a turn may last, to the second."""
        self._pipe = pipe
        self._limit = limit
        self._turns = 0

    def start(self) -> None:
        threading.Thread(target=self._beat, daemon=True).start()

    def turn(self) -> None:
        """The loop begins a turn."""
        self._turns += 1

    def _beat(self) -> None:
        turns, lasting = -1, 0.0
        while lasting < self._limit:
            with suppress(OSError):  # The gateway has gone; its end of stdin says so, too.
                os.write(self._pipe, b".")
            time.sleep(_INTERVAL_SECONDS)
            # Counted, not read off a clock, which goes on while the whole process is stopped.
            lasting = lasting + _INTERVAL_SECONDS if self._turns == turns else 0.0
            turns = self._turns
        _log.critical("a step has not ended for %g seconds; the worker ends", self._limit)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(_EXIT_STATUS)

"""Reports how far long work has come, as log records. Knows no work and no terminal.

`follow` logs four times a second, and each record has a `Progress` in its attribute `progress`. A log shows
only a few of these records, see `Seldom`. On a terminal, they become a bar instead, see bars.py.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_log = logging.getLogger("tiller.progress")

_SECONDS = 0.25
_LOG_SECONDS = 5.0

Amount = tuple[int, int]
"""How much is done, and how much there is to do."""


@dataclass(frozen=True)
class Progress:
    what: str
    """What is going on, such as `downloading org/model`."""
    seconds: float
    """Time since it began."""
    amount: Amount | None = None
    """None: unknown."""
    has_ended: bool = False
    interval: float = _LOG_SECONDS
    """Seconds between two lines in a log."""


def progress_of(record: logging.LogRecord) -> Progress | None:
    return getattr(record, "progress", None)


@contextmanager
def follow(what: str, measure: Callable[[], Amount | None] = lambda: None, unit: str = "") -> Iterator[None]:
    """Reports on the block until it ends. `measure` runs on another thread. `unit`: of its numbers."""
    begin, ended = time.monotonic(), threading.Event()

    def watch() -> None:
        while not ended.wait(_SECONDS):
            report(Progress(what, time.monotonic() - begin, measure()), unit)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        report(Progress(what, time.monotonic() - begin, has_ended=True))


def report(progress: Progress, unit: str = "") -> None:
    """Logs one record. `unit`: of the amount, such as `bytes`."""
    fields: dict[str, object] = {"what": progress.what}
    if progress.amount is None:
        line = "%(what)s: %(seconds)d seconds so far"
        fields["seconds"] = int(progress.seconds)
    else:
        line = f"%(what)s: %(done)d of %(total)d {unit}"
        fields["done"], fields["total"] = progress.amount
    _log.info(line, fields, extra={"progress": progress})


class Seldom(logging.Filter):
    """Lets pass one record about each work in `Progress.interval` seconds, and all other records."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        progress = progress_of(record)
        if progress is None:
            return True
        if progress.has_ended:
            self._next.pop(progress.what, None)
            return False
        if progress.seconds < self._next.get(progress.what, progress.interval):
            return False
        self._next[progress.what] = progress.seconds + progress.interval
        return True

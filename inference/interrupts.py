"""Lets an operation finish before Ctrl-C takes effect. Knows nothing of the operation."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds back SIGINT in the `with` block. At its end, the handler that was there before gets the signal.

    So the block is executed as a whole or not at all. Only the main thread runs signal handlers: in other
    threads, and if SIGINT has no handler in Python, this does nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _number, frame: held.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(signal.SIGINT, held[-1])

"""What all processes of a worker do at their start and end. Knows no engine and no messages."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import transformers.utils.logging
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

from inference.backends.backend import KernelError
from inference.interface.config import ConfigError
from inference.interface.errors import SourceError, in_one_line
from inference.models.errors import UnsupportedModelError
from inference.tensor_parallel.errors import BrokenGroupError

_PR_SET_PDEATHSIG = 1  # see prctl(2)


def take_stdout() -> int:
    """Reserves stdout for the heartbeat and returns its file descriptor. Later prints go to stderr."""
    pipe = os.dup(1)
    os.dup2(2, 1)
    return pipe


def end_with_stdin(clean_up: Callable[[], None]) -> None:
    """Ends this process, also during a step, when the other end of stdin is closed."""

    def wait() -> None:
        # Not sys.stdin.read, which holds a lock that the interpreter needs to shut down.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        with suppress(OSError):
            clean_up()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def end_with_parent() -> None:
    """Lets the system kill this process when its parent ends, even while it is stopped. Only on Linux."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_at_once(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Handles a signal while nothing has to be finished."""
    raise SystemExit(0)


def hide_progress_bars() -> None:
    """Those of libraries would break up the log. inference.interface.progress has ours."""
    disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def one_line(error: Exception) -> str:
    """The message for the operator. Errors of other libraries get their type as a prefix."""
    own = ConfigError | SourceError | UnsupportedModelError | KernelError | BrokenGroupError
    if isinstance(error, own):
        return str(error)
    return in_one_line(error)

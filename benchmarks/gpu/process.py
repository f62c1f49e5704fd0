"""A process that measures parts, one after the other. Imports no torch into the process that starts it.

A fault of the device ends all use of it in a process. So after a fault or a hang, the next part gets a new
process.
"""

import multiprocessing
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.gpu.budget import Deadline, OutOfTimeError
from benchmarks.gpu.plan import Options, Part

_GRACE_SECONDS = 15.0
"""How long a part may go on after its deadline. A part checks the deadline after every step."""
_STOP_SECONDS = 5.0
OUT_OF_TIME = "out of time"


@dataclass(frozen=True)
class Environment:
    """The device and the versions, by name."""

    content: dict[str, object]


@dataclass(frozen=True)
class Ended:
    """The end of a part. `fault` None: it is complete."""

    fault: str | None = None
    details: dict[str, float] = field(default_factory=dict)
    reusable: bool = True
    """Whether the process can measure another part."""


class MeasuringProcess:
    """Starts the process when a part needs it. Ends it with the context."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._process: Any = None
        self._connection: Any = None

    def __enter__(self) -> "MeasuringProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, part: Part, deadline: Deadline) -> Iterator[object]:
        """Yields what the part yields, an Environment if the process is new, and Ended at last."""
        if self._process is not None and not self._process.is_alive():
            self.close()
        if self._process is None:
            self._start()
        self._connection.send((part, deadline))
        ended = Ended("the process has ended", reusable=False)
        with suppress(EOFError, ConnectionError):
            while True:
                if not self._connection.poll(max(deadline.seconds_left, 0.0) + _GRACE_SECONDS):
                    ended = Ended(f"{OUT_OF_TIME}, and it did not stop", reusable=False)
                    break
                received = self._connection.recv()
                if isinstance(received, Ended):
                    ended = received
                    break
                yield received
        if not ended.reusable:
            self.close()
        yield ended

    def close(self) -> None:
        """Ends the process, which frees all its memory."""
        if self._process is None:
            return
        self._connection.close()  # the process ends by itself, unless it hangs
        self._process.join(_STOP_SECONDS)
        self._process.kill()
        self._process.join()
        self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self.options), daemon=True)
        self._process.start()
        other.close()


def _serve(connection: Connection, options: Options) -> None:
    """Measures the parts that arrive, until the other end closes."""
    with suppress(EOFError, ConnectionError):
        try:
            from benchmarks.gpu import measuring

            connection.send(Environment(measuring.describe(options)))
            process = measuring.Measuring(options)
        except Exception as error:  # a package is missing, or the device
            connection.send(Ended(_describe(error), reusable=False))
            return
        while True:
            part, deadline = connection.recv()
            connection.send(_run(process, part, deadline, connection))


def _run(process: Any, part: Part, deadline: Deadline, connection: Connection) -> Ended:
    fault, reusable = None, True
    try:
        for item in process.run(part, deadline):
            connection.send(item)
    except ConnectionError:
        raise
    except OutOfTimeError:
        fault = OUT_OF_TIME
    except Exception as error:
        traceback.print_exc()
        fault, reusable = _describe(error), False
    try:
        return Ended(fault, {"memory_kept_gib": process.check_memory()}, reusable)
    except Exception as error:
        return Ended(fault or _describe(error), reusable=False)


def _describe(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]

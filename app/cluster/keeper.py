"""Keeps one process running: starts it, starts it again when it has ended, and stops it. Knows no Ray."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from app.cluster.errors import ClusterError
from app.cluster.structures import State

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 30.0
"""Seconds before a process is started again. The delay doubles each time."""
_LONG_SECONDS = 60.0
"""A process that has run for this long has started well: the delay begins anew."""
_KILL_SECONDS = 10.0
"""How long a process may go on after its time to drain."""
_REMEMBERED_LINES = 20
_MISUSED = 2
"""Exit status of a command whose configuration is wrong."""


@dataclass(frozen=True)
class Launch:
    """A process to start."""

    arguments: Sequence[str]
    """Of the `tiller` command."""
    directory: Path
    """The working directory."""
    address: str
    """Where it listens."""


class Keeper:
    """Keeps a `tiller` process running, in a thread of its own.

    The system kills the process when this one ends, whatever the reason. Its log goes to this one's stderr.
    """

    def __init__(self, prepare: Callable[[], Launch], drain_seconds: float) -> None:
        """`prepare` is called before each start. It raises ClusterError if there can be no process."""
        self._prepare = prepare
        self._drain_seconds = drain_seconds
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self.state: State = "starting"
        self.address = ""
        self.reason = ""
        self.restarts = 0
        self.failures = 0
        self.misplaced = False
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Sends SIGTERM; the process is killed if it goes on for too long. Returns at once."""
        if not self._stopping.is_set():
            self.state = "stopping"
            self._stopping.set()
            threading.Thread(target=self._end, name="end", daemon=True).start()

    def wait(self, seconds: float | None = None) -> None:
        """Waits until the process has been stopped."""
        self._thread.join(seconds)

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def _run(self) -> None:
        # Linux kills the process when the thread that has started it ends, so it is always this thread.
        delay = _FIRST_DELAY
        while not self._stopping.is_set():
            began = time.monotonic()
            self._run_once()
            if time.monotonic() - began > _LONG_SECONDS:
                delay, self.failures = _FIRST_DELAY, 0
            self.failures += 1
            if not self._stopping.is_set():
                self.state = "failed"
            self._stopping.wait(delay)
            self.restarts += 1
            delay = min(2 * delay, _LONGEST_DELAY)
        self.state = "stopped"

    def _run_once(self) -> None:
        """Runs one process until its end."""
        try:
            launch = self._prepare()
            self._process = _spawn(launch)
        except (ClusterError, OSError) as error:
            self.reason = str(error)
            return
        self.address = launch.address
        if not self._stopping.is_set():
            self.state = "running"
        lines = _read_log(self._process)
        self._note_end(self._process.wait(), lines)

    def _note_end(self, status: int, lines: Sequence[str]) -> None:
        self.misplaced = status == _MISUSED
        if status < 0:
            self.reason = f"killed by {signal.Signals(-status).name}"
        else:
            self.reason = lines[-1].removeprefix("tiller: ") if lines else f"ended with status {status}"

    def _end(self) -> None:
        """Ends the process. A signal may come too early for a handler, so it is no error if it ends by it."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            self._thread.join(self._drain_seconds + _KILL_SECONDS)
            process.kill()


def _spawn(launch: Launch) -> subprocess.Popen[bytes]:
    tiller = [sys.executable, "-P", "-m", "app.cli", *launch.arguments]
    return subprocess.Popen(  # noqa: S603 - no shell
        [sys.executable, "-P", "-m", "app.cluster.with_parent", str(os.getpid()), *tiller],
        cwd=launch.directory,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _environment() -> dict[str, str]:
    """Without TILLER_ variables, which override the settings. A node may have its own cache."""
    kept = {"TILLER_CACHE_DIRECTORY"}
    return {
        name: value for name, value in os.environ.items() if not name.startswith("TILLER_") or name in kept
    }


def _read_log(process: subprocess.Popen[bytes]) -> Sequence[str]:
    """Copies the log to stderr until the process closes it. Returns the last lines."""
    last: deque[str] = deque(maxlen=_REMEMBERED_LINES)
    assert process.stderr is not None  # noqa: S101 - it is a pipe
    with process.stderr as log:
        for line in _lines(log):
            if line.strip():
                last.append(line.strip())
            sys.stderr.write(line)
            sys.stderr.flush()
    return last


def _lines(log: IO[bytes]) -> Iterator[str]:
    for line in log:
        yield line.decode(errors="replace")

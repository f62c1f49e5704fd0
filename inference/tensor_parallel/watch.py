"""Notices in the leader that a follower has ended or is silent. Ends nothing itself."""

import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from inference.interface.process_status import ProcessStatus

_TICK_SECONDS = 0.2
_FROZEN_SECONDS = 3.5
"""Limit for a follower that sends no heartbeat, and neither computes nor waits for the disk."""
_SILENT_SECONDS = 15.0
"""Limit for a follower that sends no heartbeat, although it computes."""
_START_SECONDS = 300.0
"""Both limits while the model is loaded, which may delay the heartbeat."""


class Follower:
    """A follower's process, as its leader sees it."""

    def __init__(self, number: int, process: "subprocess.Popen[bytes]") -> None:
        """`process`: its stdout carries the heartbeat."""
        assert process.stdout is not None  # noqa: S101 - for the type checker
        self._name = f"process {number} of the tensor parallel group"
        self.process = process
        self._heartbeat = process.stdout.fileno()
        os.set_blocking(self._heartbeat, False)
        self._silent = self._frozen = 0.0
        self._status = self._read_status()

    def tick(self, seconds: float, frozen_limit: float, silent_limit: float) -> str | None:
        """Counts the `seconds` since the last call. Returns a fault, or None.

        Time is counted in calls, not read from a clock: it does not count while both processes are stopped.
        """
        status = self.process.poll()
        if status is not None:
            return f"{self._name} has ended with status {status}"
        before, self._status = self._status, self._read_status()
        working = self._status.processor_time != before.processor_time or self._status.state == "D"
        beating = self._receive()
        self._silent = 0.0 if beating else self._silent + seconds
        self._frozen = 0.0 if beating or working else self._frozen + seconds
        if self._frozen < frozen_limit and self._silent < silent_limit:
            return None
        return f"{self._name} has sent no heartbeat for {self._silent:.1f} seconds"

    def close(self) -> None:
        """Tells the process to end."""
        assert self.process.stdin is not None  # noqa: S101 - for the type checker
        self.process.stdin.close()

    def wait(self, seconds: float) -> None:
        """Waits until the process has ended, and kills it if that takes longer."""
        assert self.process.stdout is not None  # noqa: S101 - for the type checker
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def _receive(self) -> bool:
        try:
            return bool(os.read(self._heartbeat, 4096))
        except BlockingIOError:
            return False

    def _read_status(self) -> ProcessStatus:
        return ProcessStatus(Path(f"/proc/{self.process.pid}/stat"))


class Watch:
    """A thread that watches the followers until the first fault."""

    def __init__(self, followers: list[Follower], lost: Callable[[str], None]) -> None:
        """`lost`: called in the thread with the first fault, in one line."""
        self._followers = followers
        self._lost = lost
        self._stopped = threading.Event()
        self.serving = False
        """Whether the model is loaded."""
        self.fault: str | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, name="group-watch", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def wait_for_fault(self, seconds: float) -> str | None:
        """The fault, if it is noticed within this time."""
        deadline = time.monotonic() + seconds
        while self.fault is None and time.monotonic() < deadline:
            time.sleep(_TICK_SECONDS)
        return self.fault

    def _run(self) -> None:
        while not self._stopped.wait(_TICK_SECONDS):
            limits = (_FROZEN_SECONDS, _SILENT_SECONDS) if self.serving else (_START_SECONDS, _START_SECONDS)
            faults = [follower.tick(_TICK_SECONDS, *limits) for follower in self._followers]
            self.fault = next(filter(None, faults), None)
            if self.fault is not None:
                self._lost(self.fault)
                return

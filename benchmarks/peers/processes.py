"""A server as a process with descendants: started, waited for, made to stand still, ended."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

_START_SECONDS = 1800.0
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.5
_SETTLE_SECONDS = 0.5


class ServerError(Exception):
    """A server did not come up. The message is one line and names its log."""


class ServerProcess:
    """Signals go to all descendants: some servers have workers in sessions of their own."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the benchmark, which then ends its servers
            )
        self._root = psutil.Process(self._process.pid)
        self._seen = {self._root}

    def wait_until_ready(self, url: str) -> None:
        """Until its /health answers 200. Raises ServerError."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            self._tree()  # seen, and not lost should it end
            if self._process.poll() is not None:
                raise ServerError(f"it ended with status {self._process.returncode}, see {self._log}")
            with suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                    return
            time.sleep(_POLL_SECONDS)
        raise ServerError(f"it was not ready after {_START_SECONDS:.0f} s, see {self._log}")

    def pause(self) -> None:
        """Parents first, so that nothing new is started meanwhile."""
        for process in self._tree():
            _send(process, signal.SIGSTOP)

    def resume(self) -> None:
        for process in self._tree():
            _send(process, signal.SIGCONT)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Running within, standing still afterwards."""
        self.resume()
        time.sleep(_SETTLE_SECONDS)
        try:
            yield
        finally:
            self.pause()

    def terminate(self) -> None:
        """Asks it to end, and kills what is left of it."""
        self.resume()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        _, left = psutil.wait_procs(self._seen, timeout=1)
        for process in left:
            _send(process, signal.SIGKILL)
        self._process.wait()

    def _tree(self) -> list[psutil.Process]:
        """Parents before their children."""
        with suppress(psutil.NoSuchProcess):
            tree = [self._root, *self._root.children(recursive=True)]
            self._seen.update(tree)
            return tree
        return list(self._seen)  # it has ended, and may have left something behind


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)

"""A server as a process with descendants: starts, pauses, resumes and ends it."""

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
    """A server did not start. The message is one line and names the server's log."""


class ServerProcess:
    """A server process. Signals go to all descendants, because workers may have their own Unix sessions."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        inherit: bool = True,
        folder: Path | None = None,
    ) -> None:
        """Starts `command` in `folder`, by default this process's working directory.

        inherit: `environment` is added to this process's environment. Else it is the whole environment.
        """
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment} if inherit else dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C goes to the benchmark, which then ends its servers
            )
        self._root = psutil.Process(self._process.pid)
        self._seen = {self._root}

    def wait_until_ready(
        self,
        url: str,
        seconds: float = _START_SECONDS,
        path: str = "/health",
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        """Waits at most `seconds` until the server answers 200 at `path`. Raises ServerError."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._tree()  # remembers descendants, so that none is lost if the server ends
            if self._process.poll() is not None:
                raise ServerError(f"the server ended with status {self._process.returncode}, see {self._log}")
            with suppress(httpx.HTTPError):
                if httpx.get(f"{url}{path}", timeout=5, trust_env=False).status_code == 200:
                    return
            time.sleep(poll_seconds)
        raise ServerError(f"the server was not ready after {seconds:.0f} s, see {self._log}")

    def pause(self) -> None:
        """Stops all processes. Parents come first, so that they start no new ones."""
        for process in self._tree():
            _send(process, signal.SIGSTOP)

    def resume(self) -> None:
        for process in self._tree():
            _send(process, signal.SIGCONT)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Resumes the server within the context, and pauses it afterwards."""
        self.resume()
        time.sleep(_SETTLE_SECONDS)
        try:
            yield
        finally:
            self.pause()

    def terminate(self) -> None:
        """Asks the server to end, and kills all processes that remain."""
        self.resume()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        _, remaining = psutil.wait_procs(self._seen, timeout=1)
        for process in remaining:
            _send(process, signal.SIGKILL)
        self._process.wait()

    def _tree(self) -> list[psutil.Process]:
        """All processes of the server, parents before their children."""
        with suppress(psutil.NoSuchProcess):
            tree = [self._root, *self._root.children(recursive=True)]
            self._seen.update(tree)
            return tree
        return list(self._seen)  # the server has ended, but its descendants may still run


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)

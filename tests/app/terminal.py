"""Runs a `tiller` command in a real pseudo-terminal of 80 columns."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]
CTRL_C, CTRL_D, TAB = "\x03", "\x04", "\t"

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_IN_TERMINAL = (  # makes the terminal the controlling one, so that Ctrl-C is a signal
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


class Terminal:
    """Use it as a context manager. All methods block."""

    def __init__(self, *arguments: str, stdout: int | None = None, **environment: str) -> None:
        """`stdout`: a file descriptor that the command's stdout goes to, instead of the terminal."""
        self._screen, command_side = pty.openpty()
        fcntl.ioctl(command_side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _IN_TERMINAL, "-m", "app.cli", *arguments],
            cwd=ROOT,
            stdin=command_side,
            stdout=command_side if stdout is None else stdout,
            stderr=command_side,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80", **environment},
        )
        os.close(command_side)
        self.raw = ""
        """All output so far."""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._screen)

    def send(self, text: str) -> None:
        if CTRL_C in text:
            time.sleep(0.3)  # readline shows its prompt a moment before it notices signals
        os.write(self._screen, text.encode())

    def expect(self, text: str, seconds: float = 30.0) -> str:
        """Waits for `text`. Returns the output since the last call, without escape sequences."""
        deadline = time.monotonic() + seconds
        while text not in self._new:
            assert time.monotonic() < deadline, f"{text!r} is not in {self._new!r}"
            assert self._read(), f"the command ended without {text!r}: {self._new!r}"
        end = self._new.index(text) + len(text)
        found = self._new[:end]
        self._seen += end
        return found

    def wait(self, seconds: float = 30.0) -> int:
        """Waits for the end of the command. Returns its exit status."""
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, f"the command still runs: {self._new!r}"
        return self._process.wait(timeout=seconds)

    @property
    def text(self) -> str:
        """All output so far, without escape sequences."""
        return _ESCAPES.sub("", self.raw)

    @property
    def _new(self) -> str:
        return self.text[self._seen :]

    def _read(self) -> bool:
        """Waits up to 0.1 seconds for output. Returns whether more may come."""
        if select.select([self._screen], [], [], 0.1)[0]:
            try:
                received = os.read(self._screen, 65536)
            except OSError:  # on Linux, when the command has ended
                return False
            self.raw += received.decode(errors="replace")
            return bool(received)
        return True

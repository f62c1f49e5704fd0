"""Asks the worker's code what it finds on this machine. A process of its own imports torch."""

import subprocess
import sys

import msgspec

from inference.interface.config import EngineConfig
from inference.interface.diagnosis import Diagnosis

_SECONDS = 300


class WorkerError(Exception):
    """The worker's code does not run here. The message is one line."""


def ask_worker(config: EngineConfig) -> Diagnosis:
    """Takes some seconds: the import of torch does. Raises WorkerError."""
    command = (sys.executable, "-P", "-m", "inference.diagnosis")
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            command, input=msgspec.json.encode(config), capture_output=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkerError(str(error)) from None
    try:
        return msgspec.json.decode(done.stdout, type=Diagnosis)
    except msgspec.DecodeError:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise WorkerError(lines[-1] if lines else f"exit status {done.returncode}") from None

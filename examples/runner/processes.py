"""Runs commands: with a limit, in an environment of their own, with their output in a log."""

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_INHERITED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
)


class CommandError(Exception):
    """A command failed, or took too long. The message is one line."""


def execute(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float, log: Path
) -> str:
    """Runs a command in `folder`, and returns its stdout. Appends stdout and stderr to `log`.

    Ends the command with all processes that it has started when it takes longer than `seconds`, and when this
    process is interrupted. Raises CommandError.
    """
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise CommandError(f"{command[0]}: {error.strerror}") from None
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        stdout, stderr = _end(process)
    except BaseException:
        _end(process)
        raise
    with log.open("a", encoding="utf-8") as file:
        file.write(stdout + stderr)
    if process.returncode == -signal.SIGKILL:
        raise CommandError(f"{Path(command[0]).name} took longer than {seconds:.0f} s")
    if process.returncode != 0:
        raise CommandError(_reason(stderr) or _reason(stdout) or f"exit status {process.returncode}")
    return stdout


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()


def _reason(output: str) -> str:
    """The last line of an error, or the line that names it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if "error" in line.lower()]
    return (named or lines or [""])[-1]


def bare_environment() -> dict[str, str]:
    """What a client needs of this process's environment, without keys and settings of other programs."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}

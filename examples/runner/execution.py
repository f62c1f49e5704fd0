"""Runs the example of one client against a server, and checks its output."""

import json
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.peers.processes import ServerError, ServerProcess
from benchmarks.peers.servers import free_port
from examples.runner.clients import FOLDER, Client
from examples.runner.installer import Installer
from examples.runner.processes import CommandError, bare_environment, execute
from examples.runner.target import Target

WORKS, FAILED, NOT_INSTALLED = "works", "FAILED", "not installed"
_DEFAULT_URL = "http://127.0.0.1:8000"
_COMMAND_SECONDS = 300.0
_START_SECONDS = 300.0
_NOTE_LENGTH = 160


@dataclass(frozen=True)
class Result:
    client: Client
    outcome: str
    seconds: float
    """Of the example alone, without the installation."""
    note: str


def run_client(client: Client, target: Target, installer: Installer, folder: Path) -> Result:
    """Installs a client into `folder` and runs its example. `folder/log.txt` has all output."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        installer.install(client, folder)
    except CommandError as error:
        return Result(client, NOT_INSTALLED, 0.0, shorten(str(error)))
    started = time.perf_counter()
    try:
        output = _output(client, target, folder)
    except (CommandError, ServerError) as error:
        return Result(client, FAILED, time.perf_counter() - started, shorten(str(error)))
    fault = find_fault(client, target, output)
    return Result(client, FAILED if fault else WORKS, time.perf_counter() - started, fault or client.remark)


def find_fault(client: Client, target: Target, output: str) -> str:
    """Why the output is not what the client must print, or an empty string."""
    words = _words(output)
    for strength in client.strengths:
        if _words(target.answer(strength)) not in words:
            return f"the output lacks the server's answer at strength {strength:g}"
    if not re.search(client.shows, output):
        return f"the output does not match {client.shows}"
    return ""


def shorten(text: str) -> str:
    return text if len(text) <= _NOTE_LENGTH else text[: _NOTE_LENGTH - 1] + "…"


def _output(client: Client, target: Target, folder: Path) -> str:
    """All that the client prints, and the contents of its output files."""
    for name in client.files:
        (folder / name).write_text(_addressed((FOLDER / name).read_text(encoding="utf-8"), name, target))
    for name in client.helpers:
        (folder / name).write_text((Path(__file__).parent / name).read_text(encoding="utf-8"))
    for path in folder.glob(client.outputs or "no such file"):
        path.unlink()
    environment = _environment(client, folder)
    with _called(client, target, environment, folder) as called:
        calls = {"TILLER_URL": called.url, "TILLER_TOKEN": called.token}
        printed = [
            execute(
                shlex.split(_filled(line, called, folder)),
                folder,
                environment | calls,
                _COMMAND_SECONDS,
                folder / "log.txt",
            )
            for line in client.command_lines
        ]
    printed += [path.read_text(encoding="utf-8") for path in folder.glob(client.outputs or "no such file")]
    return "\n".join(printed)


@contextmanager
def _called(client: Client, target: Target, environment: Mapping[str, str], folder: Path) -> Iterator[Target]:
    """What the client's commands call: Tiller, or the client's own server in front of it."""
    if client.server is None:
        yield target
        return
    called = Target(f"http://127.0.0.1:{free_port()}", client.server.token)
    command = shlex.split(_filled(client.server.command, called, folder))
    command[0] = str(folder / ".venv" / "bin" / command[0])
    process = ServerProcess(command, environment, folder / "server.log", inherit=False, folder=folder)
    try:
        process.wait_until_ready(called.url, _START_SECONDS, client.server.health)
        yield called
    finally:
        process.terminate()


def _environment(client: Client, folder: Path) -> dict[str, str]:
    programs = (folder / ".venv" / "bin", folder / "node_modules" / ".bin")
    environment = bare_environment()
    environment["PATH"] = os.pathsep.join([*map(str, programs), environment.get("PATH", "")])
    environment["HOME"] = str(folder)
    if client.compose:
        [service] = yaml.safe_load((folder / client.compose).read_text(encoding="utf-8"))["services"].values()
        environment |= service["environment"]
    return environment | {key: value.format(folder=folder) for key, value in client.environment.items()}


def _addressed(text: str, name: str, target: Target) -> str:
    """A configuration file with this server's address and token. Programs get them in the environment."""
    if Path(name).suffix not in {".yaml", ".json"}:
        return text
    text = re.sub(r"(?i)(api_?key: )none\b", lambda found: found[1] + json.dumps(target.token), text)
    return text.replace(_DEFAULT_URL, target.url)


def _filled(line: str, called: Target, folder: Path) -> str:
    values = {
        "{url}": called.url,
        "{token}": called.token,
        "{folder}": str(folder),
        "{port}": called.url.rpartition(":")[2],
    }
    for placeholder, value in values.items():
        line = line.replace(placeholder, value)
    return line


def _words(text: str) -> str:
    """The words of a text. So line breaks, quotes and their escapes in JSON make no difference."""
    return " ".join(re.findall(r"\w+", text.replace("\\n", " ")))

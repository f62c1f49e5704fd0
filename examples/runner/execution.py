"""Runs the example of one client against a server, and checks its output."""

import json
import os
import re
import shlex
import shutil
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
_COMMAND_SECONDS = 600.0
_START_SECONDS = 600.0
_NOTE_LENGTH = 160


@dataclass(frozen=True)
class Result:
    client: Client
    outcome: str
    seconds: float
    """Of the example alone, without the installation."""
    note: str


def run_client(client: Client, target: Target, installer: Installer, folder: Path) -> Result:
    """Installs a client into `folder`, and runs its example. `folder/log.txt` has all output."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").unlink(missing_ok=True)
    try:
        installer.install(client, folder)
    except CommandError as error:
        return Result(client, NOT_INSTALLED, 0.0, shorten(str(error)))
    started = time.perf_counter()
    try:
        output = _output(client, target, folder)
    except (CommandError, ServerError) as error:
        note = f"needs {client.remark}: {error}" if client.lenient else str(error)
        return Result(client, FAILED, time.perf_counter() - started, shorten(note))
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
    place = _run_folder(folder)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name in client.files:
        text = (FOLDER / name).read_text(encoding="utf-8")
        (place / name).write_text(_addressed(text, name, target), encoding="utf-8")
    for name in client.helpers:
        shutil.copy(Path(__file__).parent / name, place)
    environment = _environment(client, target, folder)
    with _called(client, target, environment, folder) as called:
        environment |= {"TILLER_URL": called.url, "TILLER_TOKEN": called.token}
        lines = [_filled(line, called, place) for line in client.command_lines]
        log = folder / "log.txt"
        printed = [execute(shlex.split(line), place, environment, _COMMAND_SECONDS, log) for line in lines]
    if client.outputs:
        printed += [path.read_text(encoding="utf-8") for path in place.glob(client.outputs)]
    return "\n".join(printed)


def _run_folder(folder: Path) -> Path:
    """The example's working directory and home. Always new: some clients store the address."""
    return folder / "run"


@contextmanager
def _called(client: Client, target: Target, environment: Mapping[str, str], folder: Path) -> Iterator[Target]:
    """What the client's commands call: Tiller, or the client's own server in front of it."""
    if client.server is None:
        yield target
        return
    called, place = Target(f"http://127.0.0.1:{free_port()}", client.server.token), _run_folder(folder)
    command = shlex.split(_filled(client.server.command, called, place))
    command[0] = str(folder / ".venv" / "bin" / command[0])
    process = ServerProcess(command, environment, folder / "server.log", inherit=False, folder=place)
    try:
        process.wait_until_ready(called.url, _START_SECONDS, client.server.health)
        yield called
    finally:
        process.terminate()


def _environment(client: Client, target: Target, folder: Path) -> dict[str, str]:
    place = _run_folder(folder)
    programs = (folder / ".venv" / "bin", folder / "node_modules" / ".bin")
    environment = bare_environment()
    environment["PATH"] = os.pathsep.join([*map(str, programs), environment.get("PATH", "")])
    environment["HOME"] = str(place)
    if client.compose:
        [service] = yaml.safe_load((place / client.compose).read_text(encoding="utf-8"))["services"].values()
        environment |= service["environment"]
    return environment | {key: _filled(value, target, place) for key, value in client.environment.items()}


def _addressed(text: str, name: str, target: Target) -> str:
    """A configuration file with this server's address and token. Programs get them in the environment."""
    if Path(name).suffix not in {".yaml", ".json"}:
        return text
    text = re.sub(r"(?i)(api_?key: )none\b", lambda found: found[1] + json.dumps(target.token), text)
    return text.replace(_DEFAULT_URL, target.url)


def _filled(line: str, called: Target, place: Path) -> str:
    values = {
        "{url}": called.url,
        "{token}": called.token,
        "{folder}": str(place),
        "{port}": called.url.rpartition(":")[2],
    }
    for placeholder, value in values.items():
        line = line.replace(placeholder, value)
    return line


def _words(text: str) -> str:
    """The words of a text. So line breaks, quotes and their escapes in JSON make no difference."""
    return " ".join(re.findall(r"\w+", text.replace("\\n", " ")))

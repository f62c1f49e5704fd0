"""Checks the workers and the registry that were started on their own: their key, and whether they answer."""

import asyncio
import socket
from pathlib import Path

from app.commands.doctor.finding import Finding, ok, problem, warning
from app.errors import StartError
from app.registry.building import key_for
from app.registry.connection import status
from app.settings import ServedModelSettings, Settings
from inference.interface.config import ConfigError
from inference.interface.worker_key import read_key

_SECONDS = 3.0


def check_key(settings: Settings) -> Finding:
    """Whether the worker key can be read, and only by this user."""
    file = settings.worker_key_file
    if file is None:
        return ok("none: neither workers nor a registry are at tcp://")
    try:
        read_key(file)
    except ConfigError as error:
        return problem(
            str(error), "copy the key that the workers have, or make one: tiller worker new-key FILE"
        )
    if file.stat().st_mode & 0o077:
        return warning(f"{file}: other users can read or write it", f"chmod 600 {file}")
    return ok(str(file))


def check_workers(model: ServedModelSettings) -> Finding:
    """Whether something listens at the addresses of the model's workers."""
    silent = [address for address in model.workers if not _answers(address)]
    if silent:
        what = f"{model.name}: nothing answers at {', '.join(silent)}"
        return warning(what, "start it there: tiller worker serve --listen ADDRESS; a server waits for one")
    return ok(f"{model.name}: {len(model.workers)} of {len(model.workers)} workers answer")


def check_registry(settings: Settings) -> Finding:
    """Whether the registry answers, with the same key and version."""
    address = settings.registry
    if address is None:
        return ok("none: the server is alone")
    try:
        found = asyncio.run(status(address, key_for(address, settings), _SECONDS))
    except StartError as error:
        return warning(str(error), "start it there: tiller registry serve --listen ADDRESS; a server waits")
    count = sum(map(len, found.workers.values()))
    return ok(f"{address}: servers {len(found.gateways)}, workers {count}, concepts {found.concepts}")


def _answers(address: str) -> bool:
    kind, _, place = address.partition("://")
    if kind == "ipc":
        return Path(place).is_socket()
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
    except OSError:
        return False
    return True

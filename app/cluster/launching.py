"""How a task becomes a process on a node: its files, its port, its command. Knows no Ray."""

import fcntl
import http.client
import ipaddress
import json
import socket
import ssl
from pathlib import Path
from typing import BinaryIO

from app import __version__
from app.cluster.errors import ClusterError
from app.cluster.files import own_directory, remove_directory, unpack_files
from app.cluster.keeper import Launch
from app.cluster.structures import Task

_CONFIG = "tiller.yaml"
_HEALTH_SECONDS = 2.0


class Launcher:
    """Prepares the process of a task on the node with this IP address. Call the object before each start."""

    def __init__(self, task: Task, host: str) -> None:
        self._task = task
        self._host = host
        self._port = 0
        self._lock: BinaryIO | None = None
        self._directory: Path | None = None

    def __call__(self) -> Launch:
        """Raises ClusterError."""
        if self._task.version != __version__:
            raise ClusterError(f"this node has Tiller {__version__}, and the cluster {self._task.version}")
        if self._directory is None:
            config = json.dumps(self._task.config).encode()  # YAML contains JSON
            self._directory = unpack_files({**self._task.files, _CONFIG: config})
        match self._task.kind:
            case "registry":
                return self._registry(self._directory)
            case "worker":
                return self._worker(self._directory)
            case "gateway":
                return self._gateway(self._directory)

    def clean_up(self) -> None:
        """Gives back files and port."""
        self._release_port()
        if self._directory is not None:
            remove_directory(self._directory)

    def _registry(self, directory: Path) -> Launch:
        port = self._task.port
        command = ("registry", "serve", "--config", _CONFIG, "--listen", f"tcp://{_any(self._host)}:{port}")
        return Launch(command, directory, f"tcp://{bracketed(self._host)}:{port}")

    def _worker(self, directory: Path) -> Launch:
        # The same port after a restart, so that gateways find the worker at once.
        self._port = find_port(self._port)
        address = f"tcp://{bracketed(self._host)}:{self._port}"
        listen = f"tcp://{_any(self._host)}:{self._port}"
        command = ("worker", "serve", "--config", _CONFIG, "--listen", listen, "--advertise", address)
        return Launch(command, directory, address)

    def _gateway(self, directory: Path) -> Launch:
        task = self._task
        port = self._reserve_port()
        scheme = "https" if "tls" in _section(task, "server") else "http"
        command = ("serve", "--config", _CONFIG, "--host", task.host, "--port", str(port))
        url = f"{scheme}://{bracketed(_reachable(task.host, self._host))}:{port}"
        return Launch(command, directory, url)

    def _reserve_port(self) -> int:
        """A port that no other gateway of this user takes meanwhile. It stays ours until this process ends.

        Raises ClusterError.
        """
        first, last = self._task.port, self._task.port + self._task.ports - 1
        for port in [self._port] if self._lock else range(first, last + 1):
            self._lock = self._lock or _lock_port(port)
            if self._lock is not None and is_free(self._task.host, port):
                self._port = port
                return port
            self._release_port()
        ports = f"port {first} is not" if first == last else f"no port from {first} to {last} is"
        raise ClusterError(f"{ports} free on this node")

    def _release_port(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _lock_port(port: int) -> BinaryIO | None:
    """An open file that no other process can lock meanwhile. None: another process has it.

    A port without its listener yet looks free to others. Raises OSError or ClusterError.
    """
    file = (own_directory() / f"port-{port}.lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen at this TCP port now."""
    return _try_port(host, port) is not None


def find_port(preferred: int) -> int:
    """A free TCP port: this one, or another one. `preferred`: 0: any."""
    found = _try_port("", preferred) or _try_port("", 0)
    if found is None:
        raise ClusterError("no TCP port is free on this node")
    return found


def _try_port(host: str, port: int) -> int | None:
    """The port if it is free; for 0, any free one."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as trial:
        # As servers do: the port of a process that has just ended is free.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
            trial.listen()
        except OSError:
            return None
        return int(trial.getsockname()[1])


def is_healthy(url: str) -> bool:
    """Whether a gateway answers /health with 200."""
    scheme, _, place = url.partition("://")
    try:
        connection = _connect(scheme, place)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return False


def _connect(scheme: str, place: str) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(place, timeout=_HEALTH_SECONDS)
    # The certificate is for another name. The request contains no secret.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(place, timeout=_HEALTH_SECONDS, context=context)


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _reachable(listened: str, node: str) -> str:
    """The address under which a server is reached that listens at `listened` on this node."""
    try:
        return node if ipaddress.ip_address(listened).is_unspecified else listened
    except ValueError:
        return listened


def _any(host: str) -> str:
    """The address that stands for all interfaces, in the family of `host`."""
    return "[::]" if ":" in host else "0.0.0.0"  # noqa: S104 - other nodes connect, with the worker key


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _section(task: Task, name: str) -> dict[str, object]:
    section = task.config.get(name)
    return section if isinstance(section, dict) else {}

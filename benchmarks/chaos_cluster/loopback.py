"""A Ray cluster of several nodes on this host, and the processes that Tiller runs there."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from inference.interface.worker_key import create_key

_START_SECONDS = 90.0
_ATTEMPTS = 3
_POLL_SECONDS = 0.2
_READY = b"will now block"
"""What `ray start --block` logs when the node is up."""
_SMALL = (
    "--num-cpus=3",
    "--object-store-memory=80000000",
    # No fixed ports: other nodes are on the same host.
    "--min-worker-port=0",
    "--max-worker-port=0",
)


class ClusterFaultError(Exception):
    """The cluster does not do what it should. The message is one line."""


class LoopbackCluster:
    """Nodes at 127.0.0.2, 127.0.0.3 and so on, each made with `tiller cluster node`.

    With settings for `tiller cluster up`, which the caller may change.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """`folder`: for the settings and logs. It must have a short path, because of Ray's sockets."""
        create_key(folder / "key")
        (folder / "token").write_text(secrets.token_hex(32))
        self._folder = folder
        self._address = f"127.0.0.2:{_free_port()}"
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **os.environ,
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        self.config: dict[str, Any] = {
            "worker_key": str(folder / "key"),
            "data_directory": str(folder / "data"),
            "server": {"port": _free_port()},
            **settings,
        }
        self.config["cluster"] = {"registry_port": _free_port(), **self.config.get("cluster", {})}

    def start(self, nodes: int) -> None:
        """Raises ClusterFaultError."""
        self.add_node("127.0.0.2")
        for number in range(3, 2 + nodes):
            self.add_node(f"127.0.0.{number}")

    def add_node(self, host: str) -> None:
        """Starts a node, and waits until it is one. The first one is the head. Raises ClusterFaultError."""
        # Ray gives a node 30 s to start, which a busy machine may need for other things.
        for _ in range(_ATTEMPTS - 1):
            with suppress(ClusterFaultError):
                return self._start_node(host)
            self.kill_node(host)
        return self._start_node(host)

    def _start_node(self, host: str) -> None:
        if self._nodes:
            place = [f"--address={self._address}"]
        else:
            port = self._address.partition(":")[2]
            place = ["--head", f"--port={port}", f"--temp-dir={self._folder / 'ray'}"]
        log = self._folder / f"node-{host}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_TILLER, "cluster", "node", *place, f"--node-ip-address={host}", *_SMALL],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._nodes[host] = process
        deadline = time.monotonic() + _START_SECONDS
        while _READY not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                last = (log.read_text(errors="replace").strip().splitlines() or ["no log"])[-1]
                raise ClusterFaultError(f"the node {host} does not start: {last}")
            time.sleep(_POLL_SECONDS)

    def kill_node(self, host: str) -> None:
        """Kills all that runs on a node, in one moment."""
        _kill_tree(self._nodes.pop(host))

    @property
    def hosts(self) -> list[str]:
        """The addresses of the nodes, the head first."""
        return list(self._nodes)

    def tiller(self, *arguments: str, seconds: float = 300.0) -> "subprocess.CompletedProcess[str]":
        """Runs `tiller cluster ARGUMENTS` with the settings."""
        file = self._folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(self.config))
        options = ["--config", str(file), "--address", self._address]
        return subprocess.run(
            [*_TILLER, "cluster", *arguments, *options],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def up(self) -> list[str]:
        """The URLs of the gateways. Raises ClusterFaultError if not all serve."""
        done = self.tiller("up")
        if done.returncode:
            raise ClusterFaultError(done.stderr)
        return done.stdout.split()

    def status(self) -> dict[str, Any]:
        """Raises ClusterFaultError."""
        done = self.tiller("status", "--json")
        if done.returncode:
            raise ClusterFaultError(done.stderr)
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def wait_until_served(self, seconds: float = 60.0) -> None:
        """Waits until all wanted processes serve. Raises ClusterFaultError."""
        deadline = time.monotonic() + seconds
        while not serves(self.status()):
            if time.monotonic() > deadline:
                raise ClusterFaultError(f"not all serve after {seconds:g} s: {self.tiller('status').stdout}")

    def shut_down(self) -> None:
        for host in reversed(self.hosts):
            self.kill_node(host)


_TILLER = (sys.executable, "-P", "-m", "app.cli")


@contextmanager
def loopback_cluster(settings: Mapping[str, Any], nodes: int = 3) -> Iterator[LoopbackCluster]:
    """A running Ray cluster, without Tiller's processes. Raises ClusterFaultError."""
    folder = Path(tempfile.mkdtemp(prefix="tr-"))  # Ray's sockets need a short path
    cluster = LoopbackCluster(folder, settings)
    try:
        cluster.start(nodes)
        yield cluster
    finally:
        cluster.shut_down()
        shutil.rmtree(folder, ignore_errors=True)


def serves(status: Mapping[str, Any]) -> bool:
    """Whether all wanted processes of a status serve."""
    groups = [(status["registry"], 1), (status["gateways"], status["wanted_gateways"])]
    groups += [(model["workers"], model["wanted"]) for model in status["models"]]
    return all(
        len(members) == wanted and all(member["state"] == "serving" for member in members)
        for members, wanted in groups
    )


def process_at(address: str) -> psutil.Process:
    """The process that listens at this address, such as `tcp://127.0.0.2:7000`. Raises ClusterFaultError."""
    port = int(address.rsplit(":", 1)[1])
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return psutil.Process(connection.pid)
    raise ClusterFaultError(f"nothing listens at {address}")


def _kill_tree(root: "subprocess.Popen[bytes]") -> None:
    if root.poll() is None:
        for process in psutil.Process(root.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        root.kill()
    root.wait(10)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])

"""Ports and files of the processes on a node."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app import __version__
from app.cluster import files
from app.cluster.errors import ClusterError
from app.cluster.files import Luggage, unpack_files
from app.cluster.launching import Launcher, find_port, is_free
from app.cluster.structures import Resources, Task


@pytest.fixture
def gateway() -> Iterator[Callable[..., Launcher]]:
    with ExitStack() as stack:

        def make(port: int, ports: int = 2, version: str = __version__, host: str = "127.0.0.1") -> Launcher:
            config: dict[str, object] = {"server": {}}
            task = Task("gateway", version, config, {}, Resources(), 5, host=host, port=port, ports=ports)
            launcher = Launcher(task, "10.0.0.7")
            stack.callback(launcher.clean_up)
            return launcher

        yield make


@pytest.fixture
def port() -> int:
    """The first of two free ports."""
    while True:
        first = find_port(0)
        if first < 65535 and is_free("", first + 1):
            return first


def test_gateways_on_a_host_take_one_port_after_the_other(
    gateway: Callable[..., Launcher], port: int
) -> None:
    first, second, third = gateway(port), gateway(port), gateway(port)
    assert first().address == f"http://127.0.0.1:{port}"
    assert second().address == f"http://127.0.0.1:{port + 1}"
    assert first().address == f"http://127.0.0.1:{port}"
    with pytest.raises(ClusterError, match=f"no port from {port} to {port + 1} is free"):
        third()
    first.clean_up()
    assert third().address == f"http://127.0.0.1:{port}"


def test_a_port_that_another_program_has_is_left_out(gateway: Callable[..., Launcher], port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        assert gateway(port)().address == f"http://127.0.0.1:{port + 1}"
        with pytest.raises(ClusterError, match=f"port {port} is not free"):
            gateway(port, ports=1)()


def test_the_url_is_that_of_the_node_if_the_gateway_listens_everywhere(
    gateway: Callable[..., Launcher], port: int
) -> None:
    assert gateway(port, host="0.0.0.0")().address == f"http://10.0.0.7:{port}"


def test_a_node_with_another_version_is_one_line(gateway: Callable[..., Launcher]) -> None:
    with pytest.raises(ClusterError, match=r"this node has Tiller .*, and the cluster 0\.1"):
        gateway(8000, version="0.1")()


def test_files_of_ended_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    mine = unpack_files({"a/b": b"1"})
    (mine.parent / "999999999-x").mkdir()
    assert (mine / "a" / "b").read_bytes() == b"1"
    assert unpack_files({}).parent == mine.parent
    assert mine.exists()
    assert not (mine.parent / "999999999-x").exists()


def test_a_directory_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / f"tiller-cluster-{os.getuid()}").mkdir(mode=0o755)
    with pytest.raises(ClusterError, match="must be a directory that only this user can access"):
        unpack_files({})


def test_too_large_files_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(ClusterError, match="larger than 16 MiB"):
        Luggage().add(tmp_path / "large", "large")

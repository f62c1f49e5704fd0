"""Processes that are kept running, and end with the process that keeps them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from app.cluster.errors import ClusterError
from app.cluster.keeper import Keeper, Launch

REFUSED = ("worker", "serve", "--config", "none.yaml", "--listen", "ipc:///tmp/none")


def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    """Keeps a registry, which needs no model."""
    listen = f"ipc://{tmp_path}/registry"
    (tmp_path / "config.yaml").write_text(f"data_directory: {tmp_path}")
    command = ("registry", "serve", "--config", "config.yaml", "--listen", listen)
    made = Keeper(lambda: Launch(command, tmp_path, listen), drain_seconds=5)
    made.start()
    until(lambda: (tmp_path / "registry").exists())
    yield made
    made.stop()
    made.wait(30)


def test_a_killed_process_is_started_again(keeper: Keeper) -> None:
    first = keeper.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: keeper.state == "running" and keeper.pid != first)
    assert (keeper.restarts, keeper.failures, keeper.reason) == (1, 1, "killed by SIGKILL")


def test_a_stopped_process_stays_stopped(keeper: Keeper) -> None:
    keeper.stop()
    keeper.wait(30)
    assert keeper.state == "stopped"
    assert not psutil.pid_exists(keeper.pid or 0)


def test_a_process_that_refuses_its_configuration_says_why(tmp_path: Path) -> None:
    keeper = Keeper(lambda: Launch(REFUSED, tmp_path, ""), drain_seconds=0)
    keeper.start()
    until(lambda: keeper.failures >= 1)
    assert keeper.reason == "none.yaml: cannot be read: No such file or directory"
    assert keeper.misplaced
    keeper.stop()
    keeper.wait(30)


def test_what_cannot_be_started_is_tried_again_and_says_why() -> None:
    def prepare() -> Launch:
        raise ClusterError("no port is free")

    keeper = Keeper(prepare, drain_seconds=0)
    keeper.start()
    until(lambda: keeper.failures >= 2)
    assert keeper.reason == "no port is free"
    keeper.stop()
    keeper.wait(30)
    assert keeper.state == "stopped"


def test_a_process_ends_with_its_parent() -> None:
    """Also if the parent is killed, and so cannot tell it."""
    started = (
        "import subprocess, sys, os; p = subprocess.Popen([sys.executable, '-m', 'app.cluster.with_parent',"
    )
    started += " str(os.getpid()), '/bin/sleep', '60']); print(p.pid, flush=True); p.wait()"
    parent = subprocess.Popen([sys.executable, "-c", started], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    until(lambda: child.name() == "sleep")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)

"""A group of processes ends as a whole, whichever process is lost and however. Nothing remains of it."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from inference.building import build_engine
from inference.interface.config import ConfigError, EngineConfig
from inference.interface.protocol import Started, StartFailed
from inference.interface.requests import GenerationRequest
from tests.inference.tensor_parallel.conftest import save_model
from tests.inference.test_worker import Process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the tests stop processes, and read /proc")


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), max_position_embeddings=100_000)


def config(directory: Path, **options: object) -> EngineConfig:
    fields = {"source": str(directory), "device": "cpu", "kv_cache_gib": 0.1, "threads": 2, **options}
    return EngineConfig(**{"tensor_parallel": 2, **fields})


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for the temporary files of the processes."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


@pytest.fixture
def worker(tmp_path: Path, temporary: Path, model_directory: Path) -> Iterator[Process]:
    process = Process(tmp_path, config(model_directory))
    yield process
    process.close()


def follower_of(worker: Process) -> psutil.Process:
    [follower] = psutil.Process(worker.process.pid).children()
    return follower


def start_endless_answer(worker: Process) -> None:
    worker.send(GenerationRequest("endless", [5, 6, 7], 90_000))
    worker.receive_steps(20)


def wait_until_gone(process: psutil.Process, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the process still runs"
        time.sleep(0.02)


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGKILL, 3), (signal.SIGSTOP, 8)])
def test_the_loss_of_a_follower_ends_the_worker(
    worker: Process, temporary: Path, number: signal.Signals, seconds: float, busy: bool
) -> None:
    assert isinstance(worker.receive(), Started)
    follower = follower_of(worker)
    if busy:
        start_endless_answer(worker)
    follower.send_signal(number)
    assert worker.process.wait(timeout=seconds) not in (0, None)
    wait_until_gone(follower, 1)
    assert list(temporary.iterdir()) == []


def test_a_follower_that_fails_ends_the_worker(
    tmp_path: Path, temporary: Path, model_directory: Path
) -> None:
    worker = Process(tmp_path, config(model_directory), "tests.inference.tensor_parallel.faulty_worker")
    assert isinstance(worker.receive(), Started)
    follower = follower_of(worker)
    start_endless_answer(worker)
    assert worker.process.wait(timeout=5) not in (0, None)
    wait_until_gone(follower, 1)
    assert list(temporary.iterdir()) == []
    worker.close()


def test_a_follower_ends_with_a_killed_worker_even_if_it_is_stopped(worker: Process) -> None:
    assert isinstance(worker.receive(), Started)
    follower = follower_of(worker)
    start_endless_answer(worker)
    follower.suspend()
    worker.process.kill()
    wait_until_gone(follower, 3)


@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_all_end_when_the_gateway_exits(worker: Process, temporary: Path, busy: bool) -> None:
    assert isinstance(worker.receive(), Started)
    follower = follower_of(worker)
    if busy:
        start_endless_answer(worker)
    worker.stdin.close()
    assert worker.process.wait(timeout=5) == 0
    wait_until_gone(follower, 3)
    assert list(temporary.iterdir()) == []


def test_all_end_after_sigterm(worker: Process, temporary: Path) -> None:
    assert isinstance(worker.receive(), Started)
    follower = follower_of(worker)
    start_endless_answer(worker)
    follower.terminate()  # does nothing: the worker decides
    worker.receive_steps(20)
    worker.process.terminate()
    assert worker.process.wait(timeout=5) == 0
    assert not follower.is_running()
    assert list(temporary.iterdir()) == []


def wait_for_follower(worker: Process) -> psutil.Process:
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(worker.process.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return children[0]


def wait_until_they_connect(temporary: Path) -> None:
    deadline = time.monotonic() + 60
    while not list(temporary.glob("*/store")):
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("connected", [False, True])
def test_a_worker_killed_during_its_start_leaves_nothing(
    worker: Process, temporary: Path, connected: bool
) -> None:
    follower = wait_for_follower(worker)
    if connected:
        wait_until_they_connect(temporary)
    worker.process.kill()
    wait_until_gone(follower, 30)
    assert list(temporary.iterdir()) == []


def test_a_follower_that_cannot_start_is_reported_in_one_line(worker: Process, temporary: Path) -> None:
    wait_for_follower(worker).kill()
    assert worker.receive() == StartFailed("process 1 of the tensor parallel group has ended with status -9")
    assert worker.process.wait(timeout=10) == 1
    assert list(temporary.iterdir()) == []


def test_a_follower_killed_while_the_processes_connect_ends_the_worker(
    worker: Process, temporary: Path
) -> None:
    follower = wait_for_follower(worker)
    wait_until_they_connect(temporary)
    follower.kill()
    assert worker.process.wait(timeout=10) not in (0, None)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"tensor_parallel": 3}, {}, "the model has 4 key-value heads: they must divide evenly"),
        ({}, {"model_type": "gpt2", "n_head": 4}, "no tensor parallel plan for models of type gpt2"),
        ({"quantization": "integer"}, {}, "engine.quantization integer and engine.tensor_parallel cannot be"),
        ({}, {"quantization_config": {"quant_method": "fp8"}}, "does not work with quantized weights"),
    ],
)
def test_what_cannot_be_divided_is_refused_in_one_line_before_any_process_starts(
    tmp_path: Path,
    model_directory: Path,
    options: dict[str, object],
    changes: dict[str, object],
    message: str,
) -> None:
    written = json.loads((model_directory / "config.json").read_text())
    for name in os.listdir(model_directory):
        (tmp_path / name).symlink_to(model_directory / name)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**written, **changes}))
    with pytest.raises(ConfigError) as caught:
        build_engine(config(tmp_path, **options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

"""The command `tiller doctor`: its output as text and as JSON, and its exit status."""

import json
import os
import socket
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.cli import build_commands
from app.commands.doctor import examination, machine
from app.commands.doctor.worker import WorkerError
from inference.interface.config import EngineConfig
from inference.interface.diagnosis import Diagnosis, ModelFiles
from inference.interface.worker_key import create_key
from tests.app.commands.doctor.test_checks import WELL, having
from tests.app.fakes import write_model_directory
from tests.app.registry.conftest import RunningRegistry


@pytest.fixture(autouse=True)
def diagnosis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker's code finds. The real one takes seconds; tests/inference/test_diagnosis.py has it."""
    directory = tmp_path / "model"
    directory.mkdir()
    write_model_directory(directory)
    found = having(WELL, model=ModelFiles(directory=str(directory), numbers=1000))

    def ask(config: EngineConfig) -> Diagnosis:
        if config.threads == 13:
            raise WorkerError("no module named torch")
        return found

    monkeypatch.setattr(examination, "ask_worker", ask)


def doctor(*words: str, **environment: str) -> Result:
    fine = {"TILLER_SERVER__PORT": "0", "TILLER_ENGINE__DEVICE": "cpu", "COLUMNS": "80"}
    return CliRunner(env={**fine, **environment}).invoke(build_commands(), ["doctor", *words])


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "concepts").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text(f"cache_directory: {tmp_path / 'cache'}\nserver: {{max_connections: 64}}")
    return str(file)


def test_if_all_is_well_the_status_is_0(config: str) -> None:
    done = doctor("--config", config)
    assert (done.exit_code, done.stderr) == (0, "")
    *lines, summary = done.stdout.splitlines()
    assert summary == "0 problems, 0 warnings"
    assert all(line.startswith("ok ") for line in lines), done.stdout


def test_a_problem_has_a_line_that_says_how_to_mend_it(config: str) -> None:
    done = doctor("--config", config, TILLER_SERVER__HOST="0.0.0.0")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    [number] = [number for number, line in enumerate(lines) if line.startswith("problem")]
    assert lines[number].startswith("problem network ")
    assert lines[number + 1].strip().startswith("mend: create one with `tiller token new NAME`")
    assert lines[-1] == "1 problem, 0 warnings"


def test_a_warning_is_no_problem(config: str, tmp_path: Path) -> None:
    (tmp_path / "concepts" / "broken.yaml").write_text("{")
    done = doctor("--config", config, TILLER_STEERING__CONCEPTS=str(tmp_path / "concepts"))
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "0 problems, 1 warning"


def test_json_is_one_document(config: str) -> None:
    done = doctor("--config", config, "--json", TILLER_SERVER__HOST="0.0.0.0")
    assert (done.exit_code, done.stderr) == (1, "")
    document = json.loads(done.stdout)
    assert (document["problems"], document["warnings"]) == (1, 0)
    levels = {entry["check"]: entry["level"] for entry in document["checks"]}
    assert levels.pop("network") == "problem"
    assert {"packages", "configuration", "port", "open files", "GPU", "compiler", "disk"} <= levels.keys()
    assert set(levels.values()) == {"ok"}
    assert all(bool(entry["mend"]) == (entry["level"] != "ok") for entry in document["checks"])


def test_a_mistake_in_the_configuration_ends_the_checks(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("server: {prt: 1}")
    done = doctor("--config", str(file))
    assert done.exit_code == 1
    assert f"{file}: server.prt is not a setting" in done.stdout
    assert "port " not in done.stdout
    assert "No such file" in doctor("--config", str(tmp_path / "none.yaml")).stdout


def test_each_mistake_in_the_configuration_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("server: {prt: 1}\nengine: {threads: 0}")
    done = doctor("--config", str(file))
    assert done.stdout.count("problem configuration") == 2
    assert done.stdout.splitlines()[-1] == "2 problems, 0 warnings"


def test_models_that_share_the_memory_are_added_up(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 5 * 2**30)
    models = [{"name": name, "source": "embedded"} for name in ("a", "b")]
    done = doctor("--config", config, TILLER_MODELS=json.dumps(models))
    assert done.exit_code == 0
    assert "memory          b: weights and KV cache need about 2.0 GiB" in done.stdout
    assert "memory          models on the CPU together: weights and KV cache need about 4.0" in done.stdout
    monkeypatch.setattr(machine, "available_memory", lambda: 3 * 2**30)
    done = doctor("--config", config, TILLER_MODELS=json.dumps(models))
    assert "warning memory          models on the CPU together" in done.stdout


def test_workers_that_run_on_their_own(config: str, tmp_path: Path) -> None:
    """The model's files and this machine's memory do not matter here."""
    key = tmp_path / "key"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        addresses = [f"tcp://127.0.0.1:{listener.getsockname()[1]}", f"ipc://{tmp_path}/none.sock"]
        workers = {"TILLER_MODEL__WORKERS": json.dumps(addresses[:1]), "TILLER_MODEL__SOURCE": "/none"}
        done = doctor("--config", config, TILLER_WORKER_KEY=str(key), **workers)
        assert "problem worker key" in done.stdout
        create_key(key)
        done = doctor("--config", config, TILLER_WORKER_KEY=str(key), **workers)
        assert (done.exit_code, "1 of 1 workers answer" in done.stdout) == (0, True)
        assert "memory" not in done.stdout
        key.chmod(0o644)
        workers["TILLER_MODEL__WORKERS"] = json.dumps(addresses)
        done = doctor("--config", config, TILLER_WORKER_KEY=str(key), **workers)
    assert f"nothing answers at {addresses[1]}" in done.stdout
    assert f"mend: chmod 600 {key}" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 problems, 2 warnings"


def test_a_worker_that_does_not_run_is_a_problem(config: str) -> None:
    done = doctor("--config", config, TILLER_ENGINE__THREADS="13")
    assert done.exit_code == 1
    assert "problem worker" in done.stdout
    assert "no module named torch" in done.stdout


def test_a_check_that_may_not_look_is_a_problem(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setitem(examination._CHECKS, "port", refuse)
    done = doctor("--config", config)
    assert done.exit_code == 1
    assert "cannot be checked: [Errno 13] Permission denied" in done.stdout


def test_the_registry(config: str, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/registry.sock"
    done = doctor("--config", config, TILLER_REGISTRY=address)
    assert f"warning registry        the registry at {address} gives no status" in done.stdout
    registry = RunningRegistry(address, tmp_path / "registry")
    registry.start()
    try:
        done = doctor("--config", config, TILLER_REGISTRY=address, TILLER_MODEL__SOURCE="/none")
    finally:
        registry.stop()
    assert f"registry        {address}: servers 0, workers 0, concepts 0" in done.stdout
    assert done.exit_code == 0

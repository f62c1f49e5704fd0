"""`tiller registry`: its status, and what keeps it from serving."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import build_commands
from tests.app.registry.conftest import RunningRegistry


def run(*words: str, **environment: str) -> tuple[int, str, str]:
    done = CliRunner(env=environment).invoke(build_commands(), ["registry", *words])
    return done.exit_code, done.stdout, done.stderr


def test_the_status(tmp_path: Path) -> None:
    registry = RunningRegistry(f"ipc://{tmp_path}/registry.sock", tmp_path / "registry")
    registry.start()
    try:
        code, text, _ = run("status", TILLER_REGISTRY=registry.address)
        assert (code, text) == (0, "servers: none\ncreated concepts: 0\n")
        _, text, _ = run("status", "--json", TILLER_REGISTRY=registry.address)
        assert json.loads(text) == {"workers": {}, "gateways": [], "loads": {}, "concepts": 0}
    finally:
        registry.stop()


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["status"], {}, "the setting registry must name the address"),
        (["status"], {"TILLER_REGISTRY": "tcp://host:1"}, "worker_key must be set, because the registry"),
        (["status"], {"TILLER_REGISTRY": "host:1"}, "registry must be tcp://HOST:PORT"),
        (["serve", "--listen", "tcp://127.0.0.1:1"], {}, "worker_key must be set for a registry"),
        (["serve", "--listen", "ipc:///none/x"], {}, "ipc:///none/x: No such file or directory"),
        (
            ["serve", "--listen", "tcp://127.0.0.1:1"],
            {"TILLER_WORKER_KEY": "/none"},
            "the worker key /none cannot be read",
        ),
    ],
)
def test_a_mistake_is_one_line(words: list[str], environment: dict[str, str], message: str) -> None:
    code, _, error = run(*words, **environment)
    assert code in (1, 2)
    assert message in error.splitlines()[-1]

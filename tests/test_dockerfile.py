"""Tests of the image that need no Docker engine."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parent.parent


@pytest.fixture
def instructions() -> list[tuple[str, str]]:
    parser = DockerfileParser(path=str(ROOT / "Dockerfile"))
    return [(part["instruction"], part["value"]) for part in parser.structure]


def values(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [value for instruction, value in instructions if instruction == name]


def test_both_variants_are_stages(instructions: list[tuple[str, str]]) -> None:
    stages = [value.rpartition(" AS ")[2] for value in values(instructions, "FROM")]
    assert stages == ["cpu", "cuda", "${VARIANT}"]
    assert "VARIANT=cpu" in values(instructions, "ARG")


def test_it_runs_as_an_unprivileged_user_and_reports_its_health(instructions: list[tuple[str, str]]) -> None:
    assert values(instructions, "USER") == ["tiller"]
    assert values(instructions, "VOLUME") == ["/var/cache/tiller /var/lib/tiller"]
    environment = " ".join(values(instructions, "ENV")).split()
    assert "TILLER_CACHE_DIRECTORY=/var/cache/tiller" in environment
    assert "TILLER_DATA_DIRECTORY=/var/lib/tiller" in environment
    [health] = values(instructions, "HEALTHCHECK")
    command = json.loads(health.partition("CMD")[2])
    [served] = [json.loads(value) for value in values(instructions, "CMD")]
    assert command[:2] == ["tiller", "health"]
    assert command[2:] == served[1:], "the health check reads the server's configuration"
    order = [name for name, _ in instructions]
    assert order.index("USER") > max(i for i, name in enumerate(order) if name == "RUN")


def test_every_step_is_valid_shell(instructions: list[tuple[str, str]]) -> None:
    scripts = values(instructions, "RUN")
    assert scripts
    for script in scripts:
        subprocess.run(["sh", "-n", "-c", script], check=True)


def test_copied_files_are_not_ignored(instructions: list[tuple[str, str]]) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        name.removeprefix("./") for value in values(instructions, "COPY") for name in value.split()[:-1]
    }
    assert copied == kept


def test_copied_files_can_be_installed_and_started(
    instructions: list[tuple[str, str]], tmp_path: Path
) -> None:
    """Runs the install step on the copied files alone. The dependencies must be the pinned versions."""
    context = tmp_path / "context"
    context.mkdir()
    for value in values(instructions, "COPY"):
        for name in value.split()[:-1]:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, context / name)
    [install] = [value for value in values(instructions, "RUN") if "pip install" in value]
    install = re.sub(r"^python -m pip install", "", install)
    target = tmp_path / "installed"
    pip = f"{sys.executable} -m pip install --quiet --disable-pip-version-check"
    env = {**os.environ, "TORCH_INDEX": ""}
    # Checks that the installed dependencies satisfy constraints.txt.
    checked = f"{pip} --dry-run --no-build-isolation {install}"
    subprocess.run(["sh", "-c", checked], cwd=context, env=env, check=True)
    subprocess.run(
        ["sh", "-c", f"{pip} --no-build-isolation --no-deps --target {target} {install}"],
        cwd=context,
        env=env,
        check=True,
    )

    def run_installed(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-P", *arguments],
            cwd=tmp_path,
            env={**env, "PYTHONPATH": str(target)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    shown = run_installed(
        "-c", "import app, inference, tiller; print(app.__file__, inference.__file__, tiller.__file__)"
    )
    assert shown.count(str(target)) == 3
    assert "sha256" in run_installed("-m", "app.cli", "token", "new", "--print-only", "alice")

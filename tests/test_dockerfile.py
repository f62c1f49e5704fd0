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
    parts = [(part["instruction"], part["value"]) for part in parser.structure]
    return [(name, value) for name, value in parts if name != "COMMENT"]


def values(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [value for instruction, value in instructions if instruction == name]


def copied(instructions: list[tuple[str, str]]) -> list[str]:
    """The files and folders of the checkout that are copied."""
    lists = [value.split()[:-1] for value in values(instructions, "COPY") if "--from=" not in value]
    return [name for names in lists for name in names]


def stages(instructions: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, by its name. The last stage has none."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, value in instructions:
        if name == "FROM":
            current = found.setdefault(value.partition(" AS ")[2], [])
            current.append((name, value.partition(" AS ")[0]))
        elif found:
            current.append((name, value))
    return found


def test_a_build_without_a_target_is_for_the_cpu(instructions: list[tuple[str, str]]) -> None:
    found = stages(instructions)
    assert list(found) == ["build", "runtime", "cpu", "cuda", ""]
    assert found[""] == [("FROM", "cpu")]
    assert [found[name][0] for name in ("cpu", "cuda")] == [("FROM", "runtime")] * 2


def test_it_reports_its_health_and_keeps_its_files_on_volumes(instructions: list[tuple[str, str]]) -> None:
    runtime = stages(instructions)["runtime"]
    assert values(runtime, "VOLUME") == ["/var/cache/tiller /var/lib/tiller"]
    environment = " ".join(values(runtime, "ENV")).split()
    assert "TILLER_CACHE_DIRECTORY=/var/cache/tiller" in environment
    assert "TILLER_DATA_DIRECTORY=/var/lib/tiller" in environment
    [health] = values(runtime, "HEALTHCHECK")
    command = json.loads(health.partition("CMD")[2])
    [served] = [json.loads(value) for value in values(runtime, "CMD")]
    assert command[:2] == ["tiller", "health"]
    assert command[2:] == served[1:], "the health check reads the server's configuration"


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_it_runs_as_an_unprivileged_user_with_a_number(
    variant: str, instructions: list[tuple[str, str]]
) -> None:
    """Kubernetes does not start an image with `runAsNonRoot` whose user is only a name."""
    last = stages(instructions)[variant][-1]
    [added] = re.findall(r"useradd --uid (\d+) --gid 0 ", "".join(values(instructions, "RUN")))
    assert last == ("USER", f"{added}:0")
    assert int(added) > 0


def test_only_the_build_stage_has_a_cpp_compiler(instructions: list[tuple[str, str]]) -> None:
    installed = {
        stage: re.findall(r"\bg(?:cc|\+\+)(?!\S)", " ".join(values(content, "RUN")))
        for stage, content in stages(instructions).items()
    }
    assert installed == {"build": ["g++"], "runtime": [], "cpu": [], "cuda": ["gcc"], "": []}


def test_every_step_is_valid_shell(instructions: list[tuple[str, str]]) -> None:
    scripts = values(instructions, "RUN")
    assert scripts
    for script in scripts:
        subprocess.run(["sh", "-n", "-c", script], check=True)


def test_copied_files_are_not_ignored(instructions: list[tuple[str, str]]) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied(instructions)) == kept


def test_copied_files_can_be_installed_and_started(
    instructions: list[tuple[str, str]], tmp_path: Path
) -> None:
    """Runs the install step on the copied files alone. The dependencies must be the pinned versions."""
    context = tmp_path / "context"
    context.mkdir()
    for name in copied(instructions):
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

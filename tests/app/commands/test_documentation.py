"""docs/command-line.md: every command on it runs, against a gateway, and its tables name what there is."""

import asyncio
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from tokenizers import Tokenizer

from app.cli import build_commands
from app.commands.chat.parameters import ONLY_AS_JSON, PARAMETERS
from app.commands.doctor import examination as doctor
from app.settings import Settings
from tests.app.contract.support import pairs, store_concepts
from tests.app.fakes import FakeEngine, reply

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "command-line.md").read_text()
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    store_concepts(tmp_path / "data", {"formality": pairs("formal"), "sentiment": pairs("good")})
    return settings


@pytest.fixture
def shell(tmp_path: Path, live_url: str, engine: FakeEngine, tiny_tokenizer: Tokenizer) -> dict[str, str]:
    """The environment of a shell in which `tiller` is this one, and talks to the gateway."""
    engine.script = reply(tiny_tokenizer.encode("Fine.").ids)
    tiller = tmp_path / "tiller"
    words = (f"PYTHONPATH={ROOT}", sys.executable, "-m", "app.cli")
    tiller.write_text(f'#!/bin/sh\nexec env {shlex.join(words)} "$@"\n')
    tiller.chmod(0o755)
    more = {"TILLER_URL": live_url, "TILLER_SERVER__PORT": live_url.rpartition(":")[2]}
    return {**os.environ, **more, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize("line", COMMANDS)
async def test_each_command_runs(line: str, shell: dict[str, str], tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *("bash", "-o", "pipefail", "-c", line),
        cwd=ROOT,
        env=shell,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert stdout
    is_doctor = line.startswith("tiller doctor")  # this machine may have problems
    assert process.returncode == 0 or (is_doctor and process.returncode == 1), stderr.decode()
    assert b"Traceback" not in stderr


def test_the_page_has_commands_of_each_kind() -> None:
    for words in ("tiller chat", "| tiller chat", "tiller doctor", "--json"):
        assert any(words in line for line in COMMANDS), words


def test_the_page_names_all_commands_checks_and_parameters() -> None:
    for name in typer.main.get_command(build_commands()).commands:
        assert f"`tiller {name}`" in PAGE
    checks = {"packages", "configuration", "workers", *doctor._CHECKS, *doctor._WORKER_CHECKS}
    named = re.findall(r"^\| ([\w ,]+) \|", PAGE.partition("| check |")[2].partition("##")[0], re.MULTILINE)
    assert {name for entry in named for name in entry.split(", ")} == checks
    for parameter in (*PARAMETERS, *ONLY_AS_JSON):
        assert f"`{parameter}`" in PAGE

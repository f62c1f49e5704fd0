"""Completion in shells: each script is printed, and names come from the server and the token file."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import build_commands
from app.settings import Settings
from tests.app.contract.support import pairs, store_concepts
from tests.app.terminal import ROOT


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    store_concepts(tmp_path / "data", {"formal": pairs("Sir"), "french": pairs("Monsieur")})
    return settings


def complete(*words: str, **environment: str) -> list[str]:
    """What bash would offer for the last word."""
    line = {"COMP_WORDS": " ".join(("tiller", *words)), "COMP_CWORD": str(len(words))}
    runner = CliRunner(env={**line, "_TILLER_COMPLETE": "complete_bash", **environment})
    return runner.invoke(build_commands(), prog_name="tiller").stdout.split()


@pytest.mark.parametrize(
    ("shell", "words"),
    [("bash", "complete -o default -F"), ("zsh", "#compdef tiller"), ("fish", "complete --command tiller")],
)
def test_each_shell_has_a_script(shell: str, words: str) -> None:
    done = CliRunner(env={"_TILLER_COMPLETE": f"source_{shell}"}).invoke(build_commands(), prog_name="tiller")
    assert words in done.stdout


def test_the_help_names_the_option_that_installs_the_script() -> None:
    command = [sys.executable, "-m", "app.cli", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    assert "--install-completion" in done.stdout


def test_commands_and_options_are_completed() -> None:
    assert complete("c") == ["chat", "concept", "cluster"]
    assert complete("concept", "list", "--js") == ["--json"]


async def test_concepts_and_models_are_those_of_the_server(live_url: str) -> None:
    async def offered(*words: str) -> list[str]:
        return await asyncio.to_thread(complete, *words)

    assert await offered("concept", "show", "--url", live_url, "f") == ["formal", "french"]
    assert await offered("concept", "delete", "--url", live_url, "fr") == ["french"]
    assert await offered("concept", "show", "--url", live_url, "_worker/fr") == ["_worker/french"]
    assert await offered("chat", "--url", live_url, "--concept", "fo") == ["formal"]
    assert await offered("chat", "--url", live_url, "--model", "t") == ["tiny"]


def test_without_a_server_nothing_is_offered() -> None:
    assert complete("concept", "show", "--url", "http://127.0.0.1:9", "f") == []


def test_access_tokens_are_those_of_the_token_file(tmp_path: Path) -> None:
    data = {"TILLER_DATA_DIRECTORY": str(tmp_path)}
    for name in ("alice", "albert", "bob", "al$(id)"):
        CliRunner(env=data).invoke(build_commands(), ["token", "new", name])
    assert complete("token", "revoke", "al", **data) == ["alice", "albert"], "a shell could run al$(id)"
    (tmp_path / "tokens.json").write_text("{")
    assert complete("token", "revoke", "al", **data) == []

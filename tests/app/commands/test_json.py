"""`--json`: one document on stdout and nothing else there, for every command that prints data."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from app.cli import build_commands
from app.settings import AuthSettings
from tests.app.fakes import FakeEngine

CONCEPT = {"name": "kind", "description": "Grüße", "examples": [{"positive": "Thanks!", "negative": "So?"}]}


async def document(*words: object, status: int = 0, **environment: str) -> Any:
    runner = CliRunner(env=environment)
    arguments = [*map(str, words), "--json"]
    done = await asyncio.to_thread(runner.invoke, build_commands(), arguments)
    assert (done.exit_code, done.stderr) == (status, "")
    return json.loads(done.stdout)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "kind.yaml"
    file.write_text(yaml.safe_dump(CONCEPT))
    return file


def test_every_command_has_it_or_prints_no_data() -> None:
    groups = typer.main.get_command(build_commands()).commands
    commands = {
        f"{name} {inner}".strip(): command
        for name, group in groups.items()
        for inner, command in getattr(group, "commands", {"": group}).items()
    }
    without = {
        name
        for name, command in commands.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == {
        "serve",
        "token revoke",
        "concept delete",
        "concept export",
        "worker serve",
        "worker new-key",
        "registry serve",
        "cluster node",
        "cluster up",
        "cluster scale",
        "cluster down",
    }


async def test_access_tokens(tmp_path: Path) -> None:
    data = {"TILLER_DATA_DIRECTORY": str(tmp_path)}
    words = (
        "token",
        "new",
        "ada",
        "--scope",
        "chat",
        "--model",
        "tiny",
        "--max-requests",
        3,
        "--expires",
        "2999-01-31",
    )
    new = await document(*words, **data)
    facts = {
        "name": "ada",
        "expires": "2999-01-31T00:00:00Z",
        "scopes": ["chat"],
        "models": ["tiny"],
        "max_requests": 3,
        "tokens_per_minute": None,
    }
    secret = new.pop("token")
    assert new == {**facts, "stored_in": str(tmp_path / "tokens.json")}
    [stored] = json.loads((tmp_path / "tokens.json").read_text())
    assert stored["sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert await document("token", "list", **data) == {"tokens": [{**facts, "stored_in": "tokens.json"}]}


async def test_an_access_token_for_the_configuration() -> None:
    new = await document("token", "new", "ada", "--print-only")
    auth = AuthSettings.model_validate(new["configuration"]["auth"])
    assert auth.tokens[0].sha256 == hashlib.sha256(new["token"].encode()).hexdigest()


async def test_concepts_are_as_the_server_sends_them(live_url: str, file: Path, tmp_path: Path) -> None:
    there = ("--url", live_url)
    trained = await document("concept", "train", file, *there)
    assert (trained["id"], trained["state"], trained["report"]["works"]) == ("_worker/kind", "ready", True)
    assert await document("concept", "show", "kind", *there) == trained
    listed = await document("concept", "list", *there)
    assert [card["description"] for card in listed["data"]] == ["Grüße"]
    assert listed["problems"] == []
    vectors = tmp_path / "kind.safetensors"
    await asyncio.to_thread(
        CliRunner().invoke, build_commands(), ["concept", "export", "kind", str(vectors), *there]
    )
    imported = await document("concept", "import", vectors, "--name", "copy", *there)
    assert (imported["id"], imported["imported"]) == ("_worker/copy", True)


async def test_a_new_concept_file(tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps(CONCEPT["examples"]))
    target = tmp_path / "kind.yaml"
    words = ("concept", "new", "kind", "--from", tmp_path / "pairs.json", "-o", target)
    assert await document(*words) == {"file": str(target), "examples": 1}


async def test_health(live_url: str, engine: FakeEngine) -> None:
    port = {"TILLER_SERVER__PORT": live_url.rpartition(":")[2]}
    assert await document("health", **port) == {"serves": True, "fault": None}
    engine.available = False
    sick = await document("health", status=1, **port)
    assert sick["serves"] is False
    assert sick["fault"].endswith("/health answers 503")


async def test_an_error_is_no_document(live_url: str) -> None:
    arguments = ["concept", "show", "nobody", "--json", "--url", live_url]
    done = await asyncio.to_thread(CliRunner().invoke, build_commands(), arguments)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("tiller: ")


def test_without_unicode_on_stdout_a_document_is_still_json(tmp_path: Path) -> None:
    data = {"TILLER_DATA_DIRECTORY": str(tmp_path)}
    runner = CliRunner(env=data, charset="ascii")
    done = runner.invoke(build_commands(), ["token", "new", "Jürgen", "--json"])
    assert json.loads(done.stdout_bytes)["name"] == "Jürgen"

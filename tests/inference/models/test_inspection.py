"""Whether a model is here or can be got, without a download: a directory, GGUF, the hub, the package."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.interface.diagnosis import ModelFiles
from inference.interface.errors import SourceError
from inference.models import embedded, gguf_file
from inference.models.inspection import inspect
from tests.inference.models.checkpoints import make_model_directory, shard
from tests.inference.models.hub_server import Hub, serve

CODE = """
import json, sys
from pathlib import Path
import msgspec
from inference.interface.errors import SourceError
from inference.models import hub
from inference.models.inspection import inspect
model, cache, get = json.loads(sys.argv[1])
try:
    if get:
        hub.download(model, None, Path(cache) / "hub")
    print(msgspec.json.encode(inspect(model, Path(cache))).decode())
except SourceError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(tmp_path / "repository") as hub:
        make_model_directory(hub.root / "main")
        yield hub


def inspect_hub(hub: Hub, cache: Path, get: bool = False, **env: str) -> dict | str:
    """In a process, because huggingface_hub reads its variables when it is imported. Returns an error's text.

    `get`: downloads the model first.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    variables |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_XET": "1", **env}
    words = [sys.executable, "-c", CODE, json.dumps(["org/model", str(cache), get])]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


def test_a_model_on_the_hub_has_the_size_of_its_files(hub: Hub, tmp_path: Path) -> None:
    shard(hub.root / "main")
    (hub.root / "main" / "consolidated.safetensors").write_bytes(bytes(10**6))
    (hub.root / "main" / "README.md").write_bytes(bytes(10**6))
    wanted = [file for file in (hub.root / "main").iterdir() if not file.name.startswith(("con", "README"))]
    wanted += [hub.root / "main" / "config.json"]
    found = inspect_hub(hub, tmp_path / "cache")
    assert found["directory"] == ""
    assert found["todo"] == "download org/model from the Hugging Face hub"
    assert found["cache_bytes"] == sum(file.stat().st_size for file in wanted)
    assert not any(name.endswith(".safetensors") for name in hub.downloads)


def test_a_downloaded_model_is_found_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    found = inspect_hub(hub, tmp_path / "cache", get=True)
    assert found["todo"] == ""
    assert Path(found["directory"], "model.safetensors").is_file()
    hub.status = 500
    assert inspect_hub(hub, tmp_path / "cache") == found


def test_a_hub_that_gives_no_model_is_an_error(hub: Hub, tmp_path: Path) -> None:
    hub.token, hub.gated = "secret", True
    assert "its terms must be accepted" in inspect_hub(hub, tmp_path)
    assert inspect_hub(hub, tmp_path, HF_TOKEN="secret")["cache_bytes"] > 0
    assert "HF_HUB_OFFLINE is set" in inspect_hub(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert "cannot be reached" in inspect_hub(hub, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    hub.token = None
    (hub.root / "main" / "model.safetensors").rename(hub.root / "main" / "pytorch_model.bin")
    assert "org/model on the Hugging Face hub has no weights" in inspect_hub(hub, tmp_path)


def test_a_directory_is_here(tmp_path: Path) -> None:
    directory = make_model_directory(tmp_path / "model")
    found = inspect(str(directory), tmp_path / "cache")
    assert (found.directory, found.todo) == (str(directory), "")
    assert found.numbers > 0
    (directory / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"no tokenizer\.json"):
        inspect(str(directory), tmp_path / "cache")


def test_a_gguf_file_has_to_be_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_file, "count_numbers", lambda _: 1000)
    found = inspect(str(file), tmp_path / "cache")
    assert found == ModelFiles(todo=f"convert {file}", cache_bytes=4000, numbers=1000)
    converted = make_model_directory(gguf_file.directory(file, tmp_path / "cache"))
    assert inspect(str(file), tmp_path / "cache").directory == str(converted)


def test_a_gguf_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match="cannot be read as a GGUF file"):
        inspect(str(tmp_path / "model.gguf"), tmp_path / "cache")


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that takes the place of Python, and so of pip. Tests write its text."""
    script = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(script))
    return script


def answer(pip: Path, text: str) -> None:
    pip.write_text(f"#!/bin/sh\n{text}\n")
    pip.chmod(0o755)


def test_the_embedded_model_must_be_in_pips_index(pip: Path, tmp_path: Path) -> None:
    name, _, version = embedded.REQUIREMENT.partition("==")
    answer(pip, f"echo '{name} (9.9)'; echo 'Available versions: 9.9, {version}'")
    found = inspect("embedded", tmp_path / "cache")
    assert (found.directory, found.numbers) == ("", embedded.NUMBERS)
    assert found.cache_bytes > 4 * embedded.NUMBERS
    answer(pip, "echo 'Available versions: 9.9'")
    with pytest.raises(SourceError, match=f"has {name}, but not version {version}"):
        inspect("embedded", tmp_path / "cache")
    answer(pip, "echo 'ERROR: No matching distribution found' >&2; exit 1")
    with pytest.raises(SourceError, match="No matching distribution found"):
        inspect("embedded", tmp_path / "cache")


def test_the_embedded_model_is_found_if_it_is_here(tmp_path: Path) -> None:
    directory = make_model_directory(embedded.directory(tmp_path))
    assert inspect("embedded", tmp_path).directory == str(directory)

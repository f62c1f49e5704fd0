"""Tokenizers and chat templates of models on other hosts."""

from pathlib import Path

import pytest

from app.errors import StartError
from app.text.prompts import load_text
from app.workers.text_file_cache import TextFileCache
from inference.interface import text_files
from tests.app.fakes import write_model_directory


class Worker:
    """What has the files."""

    def __init__(self, directory: Path) -> None:
        self.files = text_files.hash_files(directory)
        self.contents = {sha256: (directory / name).read_bytes() for name, sha256 in self.files.items()}
        self.fetched = 0

    async def fetch(self, sha256: str) -> bytes:
        self.fetched += 1
        return self.contents[sha256]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The model's directory on the worker's host."""
    directory = tmp_path / "model"
    directory.mkdir()
    write_model_directory(directory)
    return directory


@pytest.fixture
def worker(model: Path) -> Worker:
    return Worker(model)


async def test_the_text_is_the_same_on_both_hosts(worker: Worker, model: Path, tmp_path: Path) -> None:
    (model / "weights.safetensors").write_bytes(b"large")
    directory = await TextFileCache(tmp_path / "cache").get(worker.files, worker.fetch)
    assert not (directory / "weights.safetensors").exists()
    (here, prompts), (there, others) = load_text(directory), load_text(model)
    assert here.encode("Grüße, world!") == there.encode("Grüße, world!")
    assert (prompts is None) == (others is None)


@pytest.mark.parametrize("name", [name for name in text_files.NAMES if "template" in name])
async def test_chat_templates_in_any_place_travel(model: Path, tmp_path: Path, name: str) -> None:
    write_model_directory(model, chat_template=None)
    file = model / name
    file.parent.mkdir(exist_ok=True)
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    file.write_text('{"chat_template": "%s"}' % template if name.endswith(".json") else template)  # noqa: UP031
    worker = Worker(model)
    directory = await TextFileCache(tmp_path / "cache").get(worker.files, worker.fetch)
    assert load_text(directory)[1] is not None


async def test_each_file_is_fetched_once(worker: Worker, tmp_path: Path) -> None:
    first = await TextFileCache(tmp_path).get(worker.files, worker.fetch)
    fetched = worker.fetched
    assert fetched == len(worker.files)
    assert await TextFileCache(tmp_path).get(worker.files, worker.fetch) == first
    assert worker.fetched == fetched
    (first / "tokenizer.json").write_text("damaged")
    assert await TextFileCache(tmp_path).get(worker.files, worker.fetch) == first
    assert text_files.hash_files(first) == worker.files


async def test_another_content_than_announced_is_refused(worker: Worker, tmp_path: Path) -> None:
    worker.contents = dict.fromkeys(worker.contents, b"{}")
    with pytest.raises(StartError, match="another content"):
        await TextFileCache(tmp_path).get(worker.files, worker.fetch)
    assert not (tmp_path / "text").exists() or not list((tmp_path / "text").iterdir())


@pytest.mark.parametrize("name", ["../tokenizer.json", "/etc/passwd", "model.safetensors", ""])
async def test_other_names_are_refused(worker: Worker, tmp_path: Path, name: str) -> None:
    with pytest.raises(StartError, match="no part of a tokenizer"):
        await TextFileCache(tmp_path).get({**worker.files, name: "0a"}, worker.fetch)
    assert worker.fetched == 0

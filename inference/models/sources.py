"""Finds a model's files: in a directory, in a GGUF file, on the hub, or in the embedded model's package.

The result is always a local directory in the transformers layout (config.json, safetensors,
tokenizer.json, chat template).
"""

from pathlib import Path

from inference.interface.directories import EMBEDDED, find_local
from inference.models import embedded, gguf_file, hub


def resolve(source: str, cache_directory: Path, revision: str | None = None) -> Path:
    """The local directory of a model. Downloads and converts the model first if necessary.

    `revision`: branch, tag or commit of a model from the hub. Raises SourceError if the model is not
    available.
    """
    if source == EMBEDDED:
        return embedded.prepare(cache_directory)
    local = find_local(source)
    if local is None:
        return hub.download(source, revision, cache_directory / "hub")
    return local if local.is_dir() else gguf_file.prepare(local, cache_directory)

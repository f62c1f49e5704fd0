"""Finds and checks a model's local directory. Downloads nothing and imports no torch."""

import json
import os
from pathlib import Path

EMBEDDED = "embedded"


class SourceError(Exception):
    """The model is not available. The message is one line for the operator."""


def find_directory(source: str) -> Path | None:
    """Returns the local directory that `source` names, or None if the model may have to be downloaded.

    Raises SourceError if `source` is a path without a usable model.
    """
    if source == EMBEDDED:
        return None
    directory = Path(os.path.expanduser(source))
    if directory.is_dir():
        return check_directory(directory)
    if directory.exists():
        raise SourceError(f"{source} is not a directory")
    if source.count("/") != 1 or source.startswith((".", "~", "/")):
        raise SourceError(f"model directory {source} does not exist")
    return None


def check_directory(directory: Path) -> Path:
    """Returns `directory`. Raises SourceError if a required file is missing or config.json is not valid."""
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise SourceError(f"model directory {directory} has no {name}")
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise SourceError(f"model directory {directory}: config.json cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise SourceError(f"model directory {directory}: config.json must contain a JSON object")
    return directory

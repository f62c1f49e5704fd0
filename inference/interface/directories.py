"""Which directory a source of weights names, as far as that can be told without fetching. Torch-free."""

import json
import os
from pathlib import Path

EMBEDDED = "embedded"


class SourceError(Exception):
    """The model cannot be had. The message is one line for the operator."""


def find_directory(source: str) -> Path | None:
    """None: it has to be fetched first. Raises SourceError."""
    if source == EMBEDDED:
        return None
    directory = Path(os.path.expanduser(source))
    if directory.is_dir():
        return check_directory(directory)
    if directory.exists():
        raise SourceError(f"{source} is no directory")
    if source.count("/") != 1 or source.startswith((".", "~", "/")):
        raise SourceError(f"model directory {source} does not exist")
    return None


def check_directory(directory: Path) -> Path:
    """Raises SourceError where a model's files are missing."""
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise SourceError(f"model directory {directory} has no {name}")
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise SourceError(f"model directory {directory}: config.json cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise SourceError(f"model directory {directory}: config.json must hold an object")
    return directory

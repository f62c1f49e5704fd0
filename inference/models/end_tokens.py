"""Reads which tokens end an answer, as a model's configuration files name them. Knows no tokenizer."""

import json
from pathlib import Path
from typing import Any

from inference.interface.errors import SourceError

_FILES = ("generation_config.json", "config.json")


def read_end_token_ids(directory: Path) -> dict[str, tuple[int, ...]]:
    """Maps each file that names end tokens to their ids. Raises SourceError for a broken file.

    Reads the files themselves: a config object of transformers also has its class's default ids, which may be
    ordinary tokens of this model.
    """
    found = {name: _end_ids(_read(directory / name)) for name in _FILES}
    return {name: ids for name, ids in found.items() if ids}


def _read(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none. Raises SourceError if it is not JSON."""
    try:
        content = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise SourceError(f"{file} cannot be read: {error}") from None
    return content if isinstance(content, dict) else {}


def _end_ids(config: dict[str, Any]) -> tuple[int, ...]:
    text_config = config.get("text_config")  # in multimodal models
    configs = [config, text_config] if isinstance(text_config, dict) else [config]
    values = [config.get("eos_token_id") for config in configs]
    ids = [token_id for value in values for token_id in (value if isinstance(value, list) else [value])]
    return tuple(dict.fromkeys(token_id for token_id in ids if isinstance(token_id, int) and token_id >= 0))

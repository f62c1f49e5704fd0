"""The files of a model that a gateway reads: tokenizer and chat template. Each is known by its hash."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/default.jinja",
    "chat_templates/default.jinja",
)
"""Relative to the model's directory. A model has some of them."""


def hash_files(directory: Path) -> dict[str, str]:
    """Name -> SHA-256 in hex, of those files that the directory has."""
    there = [name for name in NAMES if (directory / name).is_file()]
    return {name: sha256_of((directory / name).read_bytes()) for name in there}


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of(files: Mapping[str, str]) -> str:
    """Digest of all files together, by their names and hashes."""
    lines = [f"{name} {sha256}\n" for name, sha256 in sorted(files.items())]
    return sha256_of("".join(lines).encode())

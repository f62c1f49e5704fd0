"""Tiny model directories, and the files with which real ones are broken."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 123\n"


def make_model_directory(directory: Path, **config: Any) -> Path:
    """Writes the least that passes the checks before a model is loaded."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    save_file({"weight": torch.ones(8)}, directory / "model.safetensors")
    return directory


def shard(directory: Path, count: int = 2) -> list[Path]:
    """Replaces the single file of weights by an index and `count` shards."""
    (directory / "model.safetensors").unlink()
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        save_file({f"weight.{number}": torch.ones(8)}, directory / name)
    index = {"weight_map": {f"weight.{number}": name for number, name in enumerate(names)}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return [directory / name for name in names]

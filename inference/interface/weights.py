"""Checks the files of a model's weights without loading them: which there are, and if they are complete."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from inference.interface.errors import SourceError

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_SHARD = re.compile(r"\w[\w./-]*\.safetensors")
_POINTER = b"version https://git-lfs.github.com/spec/"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


def check_weights(directory: Path) -> None:
    """Raises SourceError, which names the file, unless `directory` has complete weights in safetensors."""
    for name in weight_files(directory):
        check_file(directory / name)


def shards(index: Path) -> list[str]:
    """The names of the files that an index names. Raises SourceError if the index cannot be read."""
    check_no_pointer(index)
    try:
        files = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{index} cannot be read: {type(error).__name__}: {error}") from None
    for name in files:
        if not (isinstance(name, str) and _SHARD.fullmatch(name)) or ".." in name:
            raise SourceError(
                f"{index} names {name!r}, which is not a safetensors file in the same directory"
            )
    if not files:
        raise SourceError(f"{index} names no files of weights")
    return sorted(files)


def check_no_pointer(file: Path) -> None:
    """Raises SourceError if the file is a Git LFS pointer, or cannot be read."""
    try:
        with file.open("rb") as content:
            start = content.read(len(_POINTER))
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}") from None
    if start == _POINTER:
        raise SourceError(f"{file} is a Git LFS pointer instead of the file itself; run `git lfs pull` there")


def weight_files(directory: Path) -> list[str]:
    """The files that transformers loads: the single one, or else those of the index."""
    if (directory / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    if not (directory / INDEX).is_file():
        _check_link(directory / SINGLE_FILE)
        _check_link(directory / INDEX)
        raise SourceError(describe_missing_weights(str(directory), os.listdir(directory)))
    names = shards(directory / INDEX)
    for name in names:
        if not (directory / name).is_file():
            _check_link(directory / name)
            raise SourceError(f"{directory} has no {name}, which {INDEX} names")
    return names


def _check_link(file: Path) -> None:
    """Raises SourceError for a link to a file that is not there."""
    if file.is_symlink():
        raise SourceError(f"{file} is a link to {os.readlink(file)}, which is not a file")


def describe_missing_weights(place: str, names: list[str]) -> str:
    """Says why the files of a directory or repository are no weights that Tiller can read."""
    names = sorted(names)
    if "adapter_config.json" in names:
        return describe_adapter(place)
    for name in names:
        if name.endswith(_PICKLES):
            return (
                f"{place} has its weights in pickled files only ({name}); they can run code when they are "
                "loaded, so Tiller reads only safetensors: load the model with transformers in a safe place, "
                "and write it with save_pretrained"
            )
    if found := [name for name in names if name.endswith(".gguf")]:
        return f"{place} has no {SINGLE_FILE}; to serve {found[0]}, set model.source to the path of that file"
    if found := [name for name in names if name.endswith(".safetensors")]:
        return (
            f"{place} has {found[0]}, but neither {SINGLE_FILE} nor {INDEX}: "
            "Tiller needs the layout of transformers"
        )
    return f"{place} has no weights: neither {SINGLE_FILE} nor {INDEX}"


def describe_adapter(place: str) -> str:
    """The message about a LoRA adapter instead of a model."""
    return (
        f"{place} is an adapter (adapter_config.json) and not a whole model; merge it into its base model, "
        "for example with peft's merge_and_unload and save_pretrained"
    )


def count_numbers(directory: Path) -> int:
    """How many numbers the weights of a model are. Reads only the files' headers. Raises SourceError."""
    tensors = [tensor for name in weight_files(directory) for tensor in check_file(directory / name)]
    return sum(math.prod(tensor["shape"]) for tensor in tensors)


def check_file(file: Path) -> list[dict[str, Any]]:
    """The entries of the tensors in the file's header. Raises SourceError unless it is complete safetensors.

    The header says how long the file is: https://huggingface.co/docs/safetensors, "Format".
    """
    check_no_pointer(file)
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if size < 8 or not 1 < length <= _MAX_HEADER_BYTES:
            raise SourceError(f"{file} is not a safetensors file: it has no valid header")
        header = content.read(length)
    if len(header) < length:
        raise SourceError(f"{file} is truncated: it ends within its header")
    try:
        tensors = [value for name, value in json.loads(header).items() if name != "__metadata__"]
        promised = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise SourceError(f"{file} is not a safetensors file: it has no valid header") from None
    if size < promised:
        raise SourceError(f"{file} is truncated: it has {size} of {promised} bytes")
    if size > promised:
        raise SourceError(f"{file} has {size} bytes, but its header says {promised}")
    return tensors

"""Finds and checks a model's local files. Downloads nothing and imports no torch."""

import json
import os
from pathlib import Path

from inference.interface.errors import MissingSourceError, SourceError
from inference.interface.quantization import INSTEAD, read_quantization
from inference.interface.weights import check_no_pointer, check_weights, describe_adapter

EMBEDDED = "embedded"

_GGUF_MAGIC = b"GGUF"
_MODELOPT = "hf_quant_config.json"
_SAVE_TOKENIZER = (
    "make it with transformers (and sentencepiece, protobuf and tiktoken, if it asks for them): "
    "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
)


def find_local(source: str) -> Path | None:
    """Returns the directory or GGUF file that `source` names, or None if it may have to be downloaded.

    Raises SourceError if `source` is a path without a usable model.
    """
    if source == EMBEDDED:
        return None
    path = Path(os.path.expanduser(source))
    try:
        if path.is_dir():
            return check_directory(path)
        if path.exists():
            return _check_gguf(path)
    except OSError as error:
        raise SourceError(f"{source} cannot be read: {error}") from None
    if source.endswith(".gguf"):
        raise MissingSourceError(f"model file {source} does not exist")
    if source.count("/") != 1 or source.startswith((".", "~", "/")):
        raise MissingSourceError(f"model directory {source} does not exist")
    return None


def check_directory(directory: Path) -> Path:
    """Returns `directory`. Raises SourceError if a required file is missing, or if one is not complete."""
    check_config(directory)
    check_weights(directory)
    if not (directory / "tokenizer.json").is_file():
        others = [
            name for name in ("tokenizer.model", "tekken.json", "vocab.json") if (directory / name).exists()
        ]
        found = f", only {others[0]}; {_SAVE_TOKENIZER}" if others else ""
        raise SourceError(f"model directory {directory} has no tokenizer.json{found}")
    check_no_pointer(directory / "tokenizer.json")
    return directory


def check_config(directory: Path) -> None:
    """Raises SourceError if config.json is missing or not valid, or names an unsupported quantization."""
    file = directory / "config.json"
    if not file.is_file():
        if (directory / "adapter_config.json").is_file():
            raise SourceError(describe_adapter(f"model directory {directory}"))
        raise SourceError(f"model directory {directory} has no config.json")
    check_no_pointer(file)
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SourceError(f"model directory {directory}: config.json cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise SourceError(f"model directory {directory}: config.json must contain a JSON object")
    try:
        quantization = read_quantization(config)
    except SourceError as error:
        raise SourceError(f"model directory {directory}: {error}") from None
    if quantization is None and (directory / _MODELOPT).is_file():
        raise SourceError(
            f"model directory {directory}: its weights are quantized with ModelOpt ({_MODELOPT}), which "
            f"is not supported; {INSTEAD}"
        )


def _check_gguf(file: Path) -> Path:
    """Returns `file`. Raises SourceError if it is not a GGUF file."""
    if file.is_file():  # no device and no pipe
        check_no_pointer(file)
        with file.open("rb") as content:
            if content.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC:
                return file
    raise SourceError(f"{file} is neither a directory nor a GGUF file")

"""Converts a GGUF file to a directory in the transformers layout, with float32 weights and the tokenizer."""

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from inference.interface.errors import SourceError
from inference.interface.progress import follow
from inference.models import gguf_config
from inference.models.conversion import make_once

_log = logging.getLogger("tiller.worker")

_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_END_TOKENS = ("eos", "eot", "eom")
_NORMAL = 1  # type of a token that is neither a control token nor a byte
_SAMPLE = 2000  # tokens
_SHARE = 0.8  # of them that must encode to themselves; it was 0.33 and 1.0 with two versions of transformers


def prepare(file: Path, cache_directory: Path) -> Path:
    """The directory of the converted model. Converts it first if necessary. Raises SourceError."""
    return make_once(directory(file, cache_directory), partial(_make, file))


def directory(file: Path, cache_directory: Path) -> Path:
    """The directory that `prepare` returns. It may not exist yet."""
    status = file.stat()
    key = f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    name = f"{file.stem[:80]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return cache_directory / "models" / name


def count_numbers(file: Path) -> int:
    """How many numbers the weights in the file are. Raises SourceError if it cannot be read."""
    return _count(_read(file))


def _make(file: Path, scratch: Path) -> Path:
    return convert(file, scratch / "converted")


def convert(file: Path, directory: Path, end_token_ids: Sequence[int] = ()) -> Path:
    """Writes the model of a GGUF file to `directory`, and returns it.

    `end_token_ids`: instead of those that the file names. Raises SourceError if the file is broken, or if
    transformers cannot convert it completely.
    """
    _log.info("converting %s (once; it can take minutes if the vocabulary is large)", file.name)
    start = time.monotonic()
    # transformers offers no switch for its progress bars. Log lines do not go through sys.stderr.
    with (
        Path(os.devnull).open("w") as nowhere,
        redirect_stderr(nowhere),
        follow(f"converting {file.name}"),
        _with_suffix(file) as named,
    ):
        reader = _read(file)
        _save_tokenizer(file, named, reader, directory)
        model = _load_model(file, named, reader)
        gguf_config.complete(model.config, reader, str(file))
        model.generation_config.eos_token_id = list(end_token_ids) or _read_end_tokens(reader)
        model.save_pretrained(directory)
    _log.info("converted %s in %.0f seconds", file.name, time.monotonic() - start)
    return directory


@contextmanager
def _with_suffix(file: Path) -> Iterator[Path]:
    """A name of the file that ends with `.gguf`. transformers takes other files for pickles."""
    if file.suffix == ".gguf":
        yield file
        return
    with tempfile.TemporaryDirectory() as directory:
        link = Path(directory) / "model.gguf"
        link.symlink_to(file.resolve())
        yield link


def _read(file: Path) -> GGUFReader:
    try:
        reader = GGUFReader(file)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise SourceError(
            f"{file} cannot be read as a GGUF file; it may be truncated: {_line(error)}"
        ) from None
    if (parts := gguf_config.value(reader, "split.count") or 1) > 1:
        raise SourceError(
            f"{file} is one of {parts} parts; join them with llama.cpp's llama-gguf-split --merge"
        )
    return reader


def _load_model(file: Path, named: Path, reader: GGUFReader) -> PreTrainedModel:
    """`named`: see _with_suffix."""
    refusal = _refusal(file, reader)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            named.parent, gguf_file=named.name, output_loading_info=True
        )
    except Exception as error:  # transformers raises nothing more precise
        raise SourceError(f"{refusal}: {_line(error)}") from error
    missing = sorted(set(loading["missing_keys"]) - set(model.all_tied_weights_keys))
    if missing or _count(reader) > sum(parameter.numel() for parameter in model.parameters()):
        lost = f"finds no {missing[0]}" if missing else "leaves out some of its tensors"
        raise SourceError(f"{refusal}: it {lost}")
    # transformers refuses to save quantized models. These weights are dequantized, so remove the mark.
    del model.config.quantization_config
    model.hf_quantizer = None
    return model


def _count(reader: GGUFReader) -> int:
    """How many numbers the tensors of the file have, without those that gguf_config reads."""
    return sum(int(tensor.n_elements) for tensor in reader.tensors if tensor.name not in _ROPE_TENSORS)


def _read_end_tokens(reader: GGUFReader) -> list[int] | None:
    ids = [gguf_config.value(reader, f"tokenizer.ggml.{name}_token_id") for name in _END_TOKENS]
    return list(dict.fromkeys(token_id for token_id in ids if token_id is not None)) or None


def _save_tokenizer(file: Path, named: Path, reader: GGUFReader, directory: Path) -> None:
    """`named`: see _with_suffix."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(named.parent, gguf_file=named.name)
    except Exception as error:  # transformers raises nothing more precise
        raise SourceError(f"{_refusal(file, reader)}: {_line(error)}") from error
    _check_tokenizer(file, reader, tokenizer)
    for name in ("bos", "eos"):  # older versions of transformers confuse them
        token_id = gguf_config.value(reader, f"tokenizer.ggml.{name}_token_id")
        if token_id is not None:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token_id))
    tokenizer.save_pretrained(directory)


def _check_tokenizer(file: Path, reader: GGUFReader, tokenizer: Any) -> None:
    """Raises SourceError if the tokenizer cannot put its own tokens together.

    transformers recovers the merges of some vocabularies, and has done so in a wrong order.
    """
    types = gguf_config.value(reader, "tokenizer.ggml.token_type") or ()
    normal = [token_id for token_id, kind in enumerate(types) if kind == _NORMAL]
    texts = {token_id: tokenizer.decode([token_id]) for token_id in normal[:: len(normal) // _SAMPLE or 1]}
    whole = {
        token_id: text for token_id, text in texts.items() if "\ufffd" not in text
    }  # no part of a character
    encode = partial(tokenizer.backend_tokenizer.encode, add_special_tokens=False)
    kept = sum(token_id in encode(text).ids for token_id, text in whole.items())
    if kept < _SHARE * len(whole):
        raise SourceError(
            f"{file}: the installed version of transformers converts its tokenizer wrongly "
            f"({kept} of {len(whole)} tokens encode to themselves); a newer version may do better"
        )


def _refusal(file: Path, reader: GGUFReader) -> str:
    architecture = gguf_config.value(reader, "general.architecture")
    return f"{file}: transformers cannot convert this GGUF file of architecture {architecture!r}"


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

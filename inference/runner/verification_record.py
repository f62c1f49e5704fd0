"""Remembers which models were verified here, so that later starts need not do it again: it takes seconds."""

import hashlib
from contextlib import suppress
from pathlib import Path

import torch
import transformers

from inference.backends.cpu import build
from inference.interface.config import EngineConfig
from inference.interface.files import write_atomically
from inference.models.causal_lm import CausalLM

_CODE = Path(__file__).parents[1]


class VerificationRecord:
    """A file in the cache directory for each combination of all that the verification depends on.

    These are the model's weights and configuration, the compiled kernels and so the kind of processor, and
    the versions of torch, of transformers and of Tiller's own code.
    """

    def __init__(self, model: CausalLM, weights_digest: str, config: EngineConfig) -> None:
        cache = Path(config.cache_directory).expanduser()
        depends_on = [
            weights_digest,
            model.config.to_json_string(use_diff=False),
            str(model.dtype),
            str((config.rotary, config.context_length, config.quantization)),
            build.library(cache).name,
            torch.__version__,
            transformers.__version__,
            _code_digest(),
        ]
        self._file = cache / "verified" / hashlib.sha256("\n".join(depends_on).encode()).hexdigest()

    def exists(self) -> bool:
        return self._file.exists()

    def write(self) -> None:
        """Does nothing if the cache directory cannot be written."""
        with suppress(OSError):
            write_atomically(self._file, b"")


def _code_digest() -> str:
    digest = hashlib.sha256()
    for file in sorted(_CODE.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()

"""Prepares a loaded model for the engine: chooses a back end, applies it, and verifies the result."""

import logging
from dataclasses import replace

from inference.backends import selection
from inference.backends.backend import TORCH, Backend, KernelError
from inference.interface.config import EngineConfig
from inference.interface.progress import follow
from inference.models.causal_lm import CausalLM
from inference.runner import verification

_log = logging.getLogger(__name__)


def adapt(model: CausalLM, config: EngineConfig) -> Backend:
    """Returns the back end. Raises UnsupportedModelError, or KernelError if quantization is not available."""
    expectation = verification.compute_reference(model)
    backend = selection.choose_backend(model, config)
    if backend.fuse:
        model.transform(backend.fuse)
    try:
        verification.check(model, backend, expectation)
    except Exception as error:
        # Either the kernels do not support this model, or the model itself is not supported.
        verification.check(model, TORCH, expectation)
        _log.warning("the kernels do not work for this model, so the server will be slower: %s", error)
        backend = replace(TORCH, quantize=backend.quantize)
    if config.quantization != "none":
        if backend.quantize is None:
            raise KernelError(f"engine.quantization {config.quantization} is not available on this device")
        with follow("quantizing the weights"):
            model.transform(backend.quantize)
    return backend

"""Makes a loaded model what the engine runs: with the fastest operations that there are, and tried."""

import logging

from inference.backends import choice
from inference.backends.choice import TORCH, Backend
from inference.interface.config import EngineConfig
from inference.models.causal_lm import CausalLM
from inference.runner import verification

_log = logging.getLogger(__name__)


def adapt(model: CausalLM, config: EngineConfig) -> Backend:
    """Raises UnsupportedModelError, and KernelError if what is configured cannot be had."""
    expectation = verification.expect(model)
    backend = choice.choose(model, config)
    if backend.fuse:
        model.fuse(backend.fuse)
    try:
        verification.verify(model, backend, expectation)
    except Exception as error:
        # Kernels may not be made for shapes like this model's; or it is the model that cannot be served.
        verification.verify(model, TORCH, expectation)
        _log.warning("the server will be slower, without kernels for this model: %s", error)
        backend = TORCH
    if config.quantization == "int8":
        model.quantize()
    return backend

"""Makes a loaded model what the engine runs: with the fastest operations that there are, and tried."""

from inference import backends, verification
from inference.backends import Backend
from inference.config import EngineConfig
from inference.model import CausalLM


def adapt(model: CausalLM, config: EngineConfig) -> Backend:
    """Raises UnsupportedModelError, and KernelError if what is configured cannot be had."""
    expectation = verification.expect(model)
    backend = backends.choose(model, config)
    if backend.fuse:
        model.fuse(backend.fuse)
    verification.verify(model, backend, expectation)
    if config.quantization == "int8":
        model.quantize()
    return backend

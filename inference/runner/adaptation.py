"""Prepares a loaded model for the engine: chooses a back end, applies it, and verifies the result."""

import logging
from dataclasses import replace

from inference.backends import selection
from inference.backends.backend import TORCH, Backend, KernelError
from inference.interface.config import EngineConfig
from inference.interface.errors import in_one_line
from inference.interface.progress import follow
from inference.models.causal_lm import CausalLM
from inference.runner import verification
from inference.runner.verification_record import VerificationRecord

_log = logging.getLogger(__name__)


def adapt(model: CausalLM, config: EngineConfig, record: VerificationRecord | None = None) -> Backend:
    """Returns the back end. Raises UnsupportedModelError, or KernelError if quantization is not available or
    does not work for this model.

    `record`: of this model, if it may be verified only once. If several processes share the model, all of
    them must call this, and all get the same back end.
    """
    backend = selection.choose_backend(model, config)
    known = record is not None and record.exists() and backend.fuse is not None
    if known and backend.fuse:
        model.transform(backend.fuse)
    else:
        backend = _verify(model, backend)
    if config.quantization != "none":
        if backend.quantize is None:
            raise KernelError(f"engine.quantization {config.quantization} is not available on this device")
        with follow("quantizing the weights"):
            quantize(model, backend)
        if not known:
            _try_quantized(model, backend, config.quantization)
    if record and not known and backend.fuse:
        record.write()
    return backend


def _try_quantized(model: CausalLM, backend: Backend, quantization: str) -> None:
    """Raises KernelError if the quantized model cannot compute, which would otherwise fail each request."""
    try:
        verification.check_runs(model, backend)
    except Exception as error:  # any kind: a kernel's error, or the model's own
        raise KernelError(
            f"engine.quantization {quantization} does not work for this model, so set it to none: "
            f"{in_one_line(error)}"
        ) from error


def _verify(model: CausalLM, backend: Backend) -> Backend:
    """Fuses the model's parts. Returns the back end with which the model computes what it computes alone."""
    expectation = verification.compute_reference(model)
    if model.group.size > 1:
        backend = _for_group(model, backend)
    if backend.fuse:
        model.transform(backend.fuse)
    error = _find_error(model, backend, expectation)
    if model.group.all(error is None):
        return backend
    # Either the kernels do not support this model, or the model itself is not supported.
    verification.check(model, TORCH, expectation)
    _log.warning("the kernels do not work for this model, so the server will be slower: %s", error)
    return replace(TORCH, quantize=backend.quantize)


def quantize(model: CausalLM, backend: Backend) -> None:
    """Quantizes the linear layers, and the KV cache if the back end's attention reads it in place.

    The back end must be able to quantize.
    """
    assert backend.quantize is not None  # noqa: S101 - for the type checker
    model.transform(backend.quantize)
    if backend.attend is not None and backend.quantized_cache_dtype is not None:
        model.store_keys_and_values_in(backend.quantized_cache_dtype)


def _for_group(model: CausalLM, backend: Backend) -> Backend:
    model.use_plain_layers()
    if not model.group.all(backend.attend is not None):
        return TORCH
    if backend.capture is not None:
        _log.info("with engine.tensor_parallel, decode steps are not captured")
    return replace(backend, capture=None)


def _find_error(model: CausalLM, backend: Backend, expectation: verification.Expectation) -> Exception | None:
    try:
        verification.check(model, backend, expectation)
    except Exception as error:  # any kind: a kernel's error, or the model's own
        return error
    return None

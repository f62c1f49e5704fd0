"""Chooses the back end: torch operations, which work on every device, or kernels for this device."""

import logging
from pathlib import Path

import torch

from inference.backends.backend import TORCH, Backend, KernelError
from inference.backends.cpu import backend as cpu
from inference.interface.config import EngineConfig
from inference.models.causal_lm import CausalLM

_log = logging.getLogger(__name__)


def choose_backend(model: CausalLM, config: EngineConfig) -> Backend:
    """Returns the fastest back end that works here.

    Raises KernelError if quantization is configured but not available.
    """
    if model.device.type == "cpu" and model.dtype == torch.float32:
        return _choose_on_cpu(config)
    if config.quantization != "none":
        raise KernelError(
            f"engine.quantization {config.quantization} needs float32 activations on the CPU, "
            f"but the model is {model.dtype} on {model.device.type}"
        )
    return _choose_on_cuda(model, config) if model.device.type == "cuda" else TORCH


def _choose_on_cpu(config: EngineConfig) -> Backend:
    try:
        return cpu.load(Path(config.cache_directory).expanduser())
    except KernelError as error:
        if config.quantization != "none":
            raise
        _log.warning("the server will be slower, without kernels for this CPU: %s", error)
        return TORCH


def _choose_on_cuda(model: CausalLM, config: EngineConfig) -> Backend:
    try:
        from inference.backends.cuda import (
            backend as cuda,  # imports Triton, which is installed only with torch for CUDA
        )

        return cuda.load(model.device, Path(config.cache_directory).expanduser())
    except Exception as error:
        # Triton needs a C compiler on this host, and it may not support the device.
        reason = " ".join(str(error).split())[:500]
        _log.warning("the server will be slower, without Triton kernels: %s", reason)
        return TORCH

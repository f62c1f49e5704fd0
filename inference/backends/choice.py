"""Chooses the back end: torch's own operations, which work everywhere, or kernels for this device."""

import logging
from pathlib import Path

import torch

from inference.backends.backend import TORCH, Backend, KernelError
from inference.backends.cpu import backend as cpu
from inference.interface.config import EngineConfig
from inference.models.causal_lm import CausalLM

_log = logging.getLogger(__name__)


def choose(model: CausalLM, config: EngineConfig) -> Backend:
    """The fastest back end that works. Raises KernelError if quantization is configured and cannot work."""
    if model.device.type == "cpu" and model.dtype == torch.float32:
        return _choose_on_cpu(config)
    if config.quantization != "none":
        raise KernelError(f"engine.quantization {config.quantization} needs the CPU and float32 activations")
    return _choose_on_cuda(model) if model.device.type == "cuda" else TORCH


def _choose_on_cpu(config: EngineConfig) -> Backend:
    try:
        return cpu.load(Path(config.cache_directory).expanduser())
    except KernelError as error:
        if config.quantization != "none":
            raise
        _log.warning("the server will be slower: %s", error)
        return TORCH


def _choose_on_cuda(model: CausalLM) -> Backend:
    try:
        from inference.backends.cuda import (
            backend as cuda,  # imports Triton, which only torch for CUDA brings
        )

        return cuda.load(model.device)
    except Exception as error:
        # Triton needs a C compiler on this host, and may not support the device.
        _log.warning("the server will be slower, without Triton: %s", " ".join(str(error).split())[:500])
        return TORCH

"""Chooses what computes: torch's own operations, which work everywhere, or kernels for what is there."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from inference.config import EngineConfig
from inference.cpu import build
from inference.model import CausalLM

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """What the engine may use for one model on one device."""

    cpu_kernels: bool
    """Whether `torch.ops.tiller_cpu` is loaded, and the model computes in what it is for."""


TORCH = Backend(cpu_kernels=False)


def choose(model: CausalLM, config: EngineConfig) -> Backend:
    """The fastest back end that can be had. Raises KernelError if int8 is configured and cannot be had."""
    needed = config.quantization == "int8"
    if model.device.type != "cpu" or model.dtype != torch.float32:
        if needed:
            raise build.KernelError("engine.quantization int8 is for the CPU and float32 activations")
        return TORCH
    try:
        build.load(Path(config.cache_directory).expanduser())
    except build.KernelError as error:
        if needed:
            raise
        _log.warning("the server will be slower: %s", error)
        return TORCH
    return Backend(cpu_kernels=True)

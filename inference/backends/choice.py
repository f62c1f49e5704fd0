"""Chooses what computes: torch's own operations, which work everywhere, or kernels for what is there."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from inference.backends.cpu import build
from inference.backends.cpu import fusion as cpu_fusion
from inference.backends.cpu import paged_attention as cpu_paging
from inference.backends.cpu import sampling as cpu_sampling
from inference.compute import sampler
from inference.compute.attention import Attend
from inference.compute.graphs import Capture
from inference.compute.sampler import Weigh
from inference.interface.config import EngineConfig
from inference.models.causal_lm import CausalLM
from inference.steering import injection
from inference.steering.injection import Steer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """What the engine uses for one model on one device."""

    attend: Attend | None = None
    """Attention that reads contexts in place; None: SDPA over gathered ones."""
    fuse: Callable[[nn.Module], None] | None = None
    """Puts fewer operations in the place of a model's many."""
    weigh: Weigh = sampler.weigh
    steer: Steer = injection.steer
    capture: Capture | None = None
    """How steps of single tokens are captured, to be replayed; None: they are run anew each time."""


TORCH = Backend()
_CPU = Backend(attend=cpu_paging.attend, fuse=cpu_fusion.fuse, weigh=cpu_sampling.weigh)


def choose(model: CausalLM, config: EngineConfig) -> Backend:
    """The fastest back end that can be had. Raises KernelError if int8 is configured and cannot be had."""
    on_cpu = model.device.type == "cpu" and model.dtype == torch.float32
    if config.quantization == "int8" and not on_cpu:
        raise build.KernelError("engine.quantization int8 is for the CPU and float32 activations")
    if on_cpu:
        return _choose_on_cpu(config)
    return _choose_on_cuda(model) if model.device.type == "cuda" else TORCH


def _choose_on_cpu(config: EngineConfig) -> Backend:
    try:
        build.load(Path(config.cache_directory).expanduser())
    except build.KernelError as error:
        if config.quantization == "int8":
            raise
        _log.warning("the server will be slower: %s", error)
        return TORCH
    return _CPU


def _choose_on_cuda(model: CausalLM) -> Backend:
    try:
        # Triton comes with torch for CUDA alone.
        from inference.backends.cuda import capture, fusion, layers, paged_attention, sampling

        layers.check(model.device)
    except Exception as error:
        # It needs a C compiler where the server runs, and may not know the device.
        _log.warning("the server will be slower, without Triton: %s", " ".join(str(error).split())[:500])
        return TORCH
    return Backend(
        attend=paged_attention.attend,
        fuse=fusion.fuse,
        weigh=sampling.weigh,
        steer=layers.steer,
        capture=capture.capture,
    )

"""Computes how many KV cache blocks fit into memory, next to the memory that steps need."""

import logging
from dataclasses import dataclass

import torch

from inference.backends.backend import Backend
from inference.compute.attention import ForwardContext
from inference.compute.batch import BatchBuilder
from inference.compute.kv_cache import KVCache
from inference.compute.sampling import penalties
from inference.interface.config import ConfigError, EngineConfig
from inference.models.causal_lm import CausalLM
from inference.runner.rehearsal import make_sequence

_log = logging.getLogger(__name__)

_GIB = 2**30
_DEFAULT_CPU_CACHE_GIB = 2.0
_CUDA_SHARE = 0.9  # upper limit, as a share of the free memory
_CUDA_MARGIN = 1.2  # factor for the memory that the largest step needs
_GRAPHS = 0.5 * _GIB  # the launches of all captured steps, and the workspace of their stream
_BYTES_PER_LOGIT = 16  # a copy of the rows that sample at random, and temporary tensors
_BYTES_PER_CAPTURED_LOGIT = 4  # float32, one buffer for all captured steps
_LONGEST_OUTPUT = 8192  # tokens, if the model has no limit


@dataclass(frozen=True)
class Reserve:
    """Memory on a CUDA device in bytes that the KV cache must leave free."""

    steps: float
    """What the largest step needs, with a margin."""
    sampling: float
    captured: float
    """Captured steps and their output."""

    @property
    def total(self) -> float:
        return self.steps + self.sampling + self.captured

    def __str__(self) -> str:
        parts = self.steps / _GIB, self.sampling / _GIB, self.captured / _GIB
        return "{:.2f} GiB for steps, {:.2f} for sampling, {:.2f} for captured steps".format(*parts)


def num_blocks(model: CausalLM, config: EngineConfig, backend: Backend) -> int:
    """The number of blocks, at least 1. Raises ConfigError if the memory is too small or not free."""
    on_cuda = model.device.type == "cuda"
    memory = _cuda_memory(model, config, backend) if on_cuda else _cpu_memory(config)
    per_token = sum(shape.num_bytes for shape in model.layer_shapes)
    count = int(memory) // (per_token * config.block_size)
    if count < 1:
        needed = f"one block of {config.block_size} tokens needs {per_token * config.block_size / _GIB:.3g}"
        raise ConfigError(
            f"engine.kv_cache_gib: the KV cache has {max(memory, 0) / _GIB:.3g} GiB, but {needed} GiB"
        )
    _log.info(
        "the KV cache has %.2f GiB, for %d tokens in %d blocks",
        count * config.block_size * per_token / _GIB,
        count * config.block_size,
        count,
    )
    return count


def _cpu_memory(config: EngineConfig) -> float:
    if config.kv_cache_share is not None:
        raise ConfigError("engine.kv_cache_share needs a CUDA device; on a CPU, set engine.kv_cache_gib")
    return (config.kv_cache_gib or _DEFAULT_CPU_CACHE_GIB) * _GIB


def _cuda_memory(model: CausalLM, config: EngineConfig, backend: Backend) -> float:
    """Bytes for the KV cache: the configured number, or what the rest leaves free."""
    reserve = _measure_reserve(model, config, backend)
    free, total = torch.cuda.mem_get_info(model.device)
    weights = torch.cuda.memory_allocated(model.device)
    _log.info(
        "GPU memory: %.2f GiB in all, %.2f for weights, %.2f free; of these, reserved: %s",
        *(number / _GIB for number in (total, weights, free)),
        reserve,
    )
    wanted = _configured(config, total)
    if wanted is None:
        return min(free * _CUDA_SHARE, free - reserve.total)
    if wanted + reserve.total > free:
        setting = "engine.kv_cache_gib" if config.kv_cache_share is None else "engine.kv_cache_share"
        raise ConfigError(
            f"{setting} asks for {wanted / _GIB:.3g} GiB, but only "
            f"{max(free - reserve.total, 0) / _GIB:.3g} GiB of the GPU's memory are free next to {reserve}"
        )
    return wanted


def _configured(config: EngineConfig, total: int) -> float | None:
    if config.kv_cache_share is not None:
        return config.kv_cache_share * total
    return None if config.kv_cache_gib is None else config.kv_cache_gib * _GIB


def _measure_reserve(model: CausalLM, config: EngineConfig, backend: Backend) -> Reserve:
    """Runs the largest step to measure the memory that steps need."""
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    run_largest_step(model, config, backend)
    taken = torch.cuda.max_memory_allocated(model.device) - before
    torch.cuda.empty_cache()
    logits = config.max_running * model.vocab_size
    longest = config.context_length or model.context_length or _LONGEST_OUTPUT
    decodes = min(1.0, config.max_running / config.max_batch_tokens)  # as a share of the largest step
    return Reserve(
        steps=_CUDA_MARGIN * taken,
        sampling=logits * _BYTES_PER_LOGIT + penalties.max_bytes(config.max_running, longest),
        captured=logits * _BYTES_PER_CAPTURED_LOGIT + decodes * taken + _GRAPHS if backend.capture else 0.0,
    )


@torch.inference_mode()
def run_largest_step(model: CausalLM, config: EngineConfig, backend: Backend) -> None:
    """Runs one prompt with as many tokens as a step can have, on a temporary cache."""
    count = min(config.max_batch_tokens, model.context_length or config.max_batch_tokens)
    cache = KVCache(model.layer_shapes, 1, count, model.device)
    builder = BatchBuilder(count, cache.padding_slot, model.device, in_place=backend.attend is not None)
    batch = builder.build([make_sequence([0] * count, [0])])
    model.forward(ForwardContext(batch, cache, backend.attend))

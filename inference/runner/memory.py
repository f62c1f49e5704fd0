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
from inference.runner.context import cache_setting
from inference.runner.rehearsal import make_sequence
from inference.scheduling.probe import MAX_TOKENS_IN_FLIGHT

_log = logging.getLogger(__name__)

_GIB = 2**30
_DEFAULT_CPU_CACHE_GIB = 2.0
_CUDA_SHARE = 0.9  # upper limit, as a share of the free memory
_CUDA_MARGIN = 1.2  # factor for the memory that the largest step needs
_GRAPHS = 0.5 * _GIB  # the launches of all captured steps, and the workspace of their stream
_BYTES_PER_LOGIT = 16  # a copy of the rows that sample at random, and temporary tensors
_BYTES_PER_CAPTURED_LOGIT = 4  # float32, one buffer for all captured steps


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
    """The number of blocks, at least 1. Raises ConfigError if the memory is too small or not free.

    If several processes share the model, all of them must call this. Each has blocks of its own for its own
    key heads, and all have the same number.
    """
    on_cuda = model.device.type == "cuda"
    memory = _cuda_memory(model, config, backend) if on_cuda else _cpu_memory(config)
    per_token = sum(shape.num_bytes for shape in model.layer_shapes)
    count = model.group.lowest(int(memory) // (per_token * config.block_size))
    if count < 1:
        needed = f"one block of {config.block_size} tokens needs {per_token * config.block_size / _GIB:.3g}"
        raise ConfigError(
            f"{cache_setting(config)}: the KV cache has {max(memory, 0) / _GIB:.3g} GiB, but {needed} GiB"
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
        others = total - free - torch.cuda.memory_reserved(model.device)
        raise ConfigError(
            f"{cache_setting(config)} asks for {wanted / _GIB:.3g} GiB, but only "
            f"{max(free - reserve.total, 0) / _GIB:.3g} GiB of the GPU's memory are free next to {reserve}; "
            f"other processes hold {max(others, 0) / _GIB:.3g} GiB"
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
    try:
        run_largest_step(model, config, backend)
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"the GPU has too little memory for a step of engine.max_batch_tokens = {config.max_batch_tokens}"
        ) from None
    taken = torch.cuda.max_memory_allocated(model.device) - before
    torch.cuda.empty_cache()
    logits = (config.max_running + MAX_TOKENS_IN_FLIGHT) * model.vocab_size
    decodes = min(1.0, config.max_running / config.max_batch_tokens)  # as a share of the largest step
    return Reserve(
        steps=_CUDA_MARGIN * taken,
        sampling=logits * _BYTES_PER_LOGIT + _penalties(model, config),
        captured=_captured(model, config) + _CUDA_MARGIN * decodes * taken if backend.capture else 0.0,
    )


def _penalties(model: CausalLM, config: EngineConfig) -> float:
    """Bytes for the outputs of sequences with penalties. No output is longer than the KV cache."""
    per_token = sum(shape.num_bytes for shape in model.layer_shapes)
    cached = int(torch.cuda.mem_get_info(model.device)[0]) // per_token
    longest = min(config.context_length or model.context_length or cached, cached)
    # The outputs of all sequences together fit into the cache as well.
    rows = max(1, min(config.max_running, cached // max(longest, 1)))
    return penalties.max_bytes(rows, longest)


def _captured(model: CausalLM, config: EngineConfig) -> float:
    return config.max_running * model.vocab_size * _BYTES_PER_CAPTURED_LOGIT + _GRAPHS


@torch.inference_mode()
def run_largest_step(model: CausalLM, config: EngineConfig, backend: Backend) -> None:
    """Runs prompts with as many tokens as a step can have, on a temporary cache."""
    longest = model.context_length or config.max_batch_tokens
    full, rest = divmod(config.max_batch_tokens, longest)
    lengths = [longest] * full + [rest] * (rest > 0)
    cache = KVCache(model.layer_shapes, len(lengths), lengths[0], model.device)
    builder = BatchBuilder(lengths[0], cache.padding_slot, model.device, in_place=backend.attend is not None)
    batch = builder.build([make_sequence([0] * length, [block]) for block, length in enumerate(lengths)])
    model.forward(ForwardContext(batch, cache, backend.attend))

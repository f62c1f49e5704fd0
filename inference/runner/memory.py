"""Computes how many KV cache blocks fit into memory, next to the memory that steps need."""

import random

import torch

from inference.backends.backend import Backend
from inference.compute.attention import ForwardContext
from inference.compute.batch import BatchBuilder
from inference.compute.kv_cache import KVCache
from inference.interface.config import ConfigError, EngineConfig
from inference.interface.protocol import GenerationRequest
from inference.models.causal_lm import CausalLM
from inference.scheduling.sequence import build_sequences

_GIB = 2**30
_DEFAULT_CPU_CACHE_GIB = 2.0
_CUDA_SHARE = 0.9  # upper limit, as a share of the free memory
_CUDA_MARGIN = 1.2  # factor for the memory that the largest step needs
_CUDA_GRAPHS = 1.0 * _GIB  # reserved for captured steps
_BYTES_PER_LOGIT = 16  # float32 logits, a copy of the rows that sample at random, and temporary tensors


def num_blocks(model: CausalLM, config: EngineConfig, backend: Backend) -> int:
    """The number of blocks, at least 1. Raises ConfigError if there is not enough memory for one block."""
    if config.kv_cache_gib is not None:
        memory = config.kv_cache_gib * _GIB
    elif model.device.type == "cuda":
        memory = _free_on_cuda(model, config, backend)
    else:
        memory = _DEFAULT_CPU_CACHE_GIB * _GIB
    per_token = sum(shape.num_bytes for shape in model.layer_shapes)
    count = int(memory) // (per_token * config.block_size)
    if count < 1:
        needed = f"one block of {config.block_size} tokens needs {per_token * config.block_size / _GIB:.3g}"
        raise ConfigError(
            f"engine.kv_cache_gib: the KV cache has {max(memory, 0) / _GIB:.3g} GiB, but {needed} GiB"
        )
    return count


def _free_on_cuda(model: CausalLM, config: EngineConfig, backend: Backend) -> float:
    """Bytes of CUDA memory for the KV cache. Runs the largest step to measure the memory that steps need."""
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    run_largest_step(model, config, backend)
    taken = torch.cuda.max_memory_allocated(model.device) - before
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(model.device)[0]
    sampling = config.max_running * model.vocab_size * _BYTES_PER_LOGIT
    return min(free * _CUDA_SHARE, free - _CUDA_MARGIN * (taken + sampling) - _CUDA_GRAPHS)


@torch.inference_mode()
def run_largest_step(model: CausalLM, config: EngineConfig, backend: Backend) -> None:
    """Runs one prompt with as many tokens as a step can have, on a temporary cache."""
    count = min(config.max_batch_tokens, model.context_length or config.max_batch_tokens)
    cache = KVCache(model.layer_shapes, 1, count, model.device)
    builder = BatchBuilder(count, cache.padding_slot, model.device, in_place=backend.attend is not None)
    request = GenerationRequest("largest", [0] * count, max_tokens=1)
    [sequence] = build_sequences(request, 0.0, iter([0]), random.Random(0))  # noqa: S311
    sequence.block_table.append(0)
    sequence.num_scheduled_tokens = count
    model.forward(ForwardContext(builder.build([sequence]), cache, backend.attend))

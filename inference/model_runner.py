"""Runs scheduled sequences through the model: batch, forward, sample. Decides nothing."""

from dataclasses import dataclass

import torch

from inference import sampler
from inference.backends import TORCH, Backend
from inference.batch import BatchBuilder
from inference.config import EngineConfig
from inference.cpu import sampling as cpu_sampling
from inference.kv_cache import KVCache
from inference.model import CausalLM
from inference.probe import MAX_TOKENS_IN_FLIGHT
from inference.protocol import TokenLogprobs
from inference.sampler import Sampler
from inference.sequence import Sequence
from inference.steering.bank import SteeringBank
from inference.steering.capture import capturing, score
from inference.steering.injection import inject

_GIB = 2**30
_DEFAULT_CPU_CACHE_GIB = 2.0
_STEERED_DEPTH = 0.6  # of the blocks; docs/steering.md says why
_CUDA_SHARE = 0.9  # of the free memory; the rest is for activations


@dataclass(frozen=True)
class SampledToken:
    """`token_id` is sampler.NOT_A_TOKEN where the model's output was not finite."""

    sequence: Sequence
    token_id: int
    logprobs: TokenLogprobs | None


class ModelRunner:
    def __init__(self, model: CausalLM, config: EngineConfig, backend: Backend = TORCH) -> None:
        self.model = model
        self.num_blocks = _num_blocks(model, config)
        self._cache = KVCache(model.layer_shapes, self.num_blocks, config.block_size, model.device)
        self._builder = BatchBuilder(
            config.block_size,
            self._cache.padding_slot,
            model.device,
            in_place=backend.cpu_kernels,
        )
        weigh = cpu_sampling.weigh if backend.cpu_kernels else sampler.weigh
        self._sampler = Sampler(model.vocab_size, model.device, weigh)
        self.bank = SteeringBank(
            # Every sequence may be steered by something else.
            num_rows=config.max_running + config.max_queued + MAX_TOKENS_IN_FLIGHT,
            blocks=_steered_blocks(model, config),
            hidden_size=model.hidden_size,
            device=model.device,
        )
        inject(model, self.bank)

    @torch.inference_mode()
    def run(self, scheduled: list[Sequence]) -> list[SampledToken]:
        """Computes each sequence's scheduled tokens; samples for those that reach their end."""
        batch = self._builder.build(scheduled)
        sampling = self._sampler.prepare(batch.sampling)  # before the device has work to wait for
        with capturing(self.model, batch.probes):
            logits = self.model.forward(batch, self._cache)
            if batch.probes:
                score(batch.probes, logits[len(batch.sampling) :])
                logits = logits[: len(batch.sampling)]
            if not batch.sampling:
                return []
            sampled = self._sampler.sample(logits, sampling)
        rows = zip(batch.sampling, sampled.token_ids, sampled.logprobs, strict=True)
        return [SampledToken(*row) for row in rows]


def _num_blocks(model: CausalLM, config: EngineConfig) -> int:
    """How many blocks the memory for the KV cache holds; at least one."""
    if config.kv_cache_gib is not None:
        memory = config.kv_cache_gib * _GIB
    elif model.device.type == "cuda":
        memory = torch.cuda.mem_get_info(model.device)[0] * _CUDA_SHARE
    else:
        memory = _DEFAULT_CPU_CACHE_GIB * _GIB
    per_token = sum(shape.num_bytes for shape in model.layer_shapes)
    return max(1, int(memory) // (per_token * config.block_size))


def _steered_blocks(model: CausalLM, config: EngineConfig) -> tuple[int, ...]:
    """Those configured, else one at _STEERED_DEPTH. Raises ValueError."""
    count = len(model.blocks)
    if config.steering_blocks is None:
        return (min(round(_STEERED_DEPTH * count), count - 1),)
    for block in config.steering_blocks:
        if not 0 <= block < count:
            raise ValueError(
                f"engine.steering_blocks has {block}, but the model's blocks are 0 to {count - 1}"
            )
    return config.steering_blocks

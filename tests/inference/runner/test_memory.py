"""Tests how much memory the KV cache gets, and that enough is left for steps."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from inference.backends.backend import TORCH, Backend
from inference.interface.config import ConfigError, EngineConfig
from inference.models.causal_lm import CausalLM
from inference.runner import memory

GIB = 2**30


def per_block(model: CausalLM) -> int:
    return 16 * sum(shape.num_bytes for shape in model.layer_shapes)


def test_the_configured_size_is_used(llama: PreTrainedModel) -> None:
    model = CausalLM(llama)
    blocks = memory.num_blocks(model, EngineConfig(kv_cache_gib=0.5), TORCH)
    assert blocks == GIB // 2 // per_block(model)
    with pytest.raises(
        ConfigError, match=r"kv_cache_gib: the KV cache has 1e-09 GiB, but one block of 16 tokens needs"
    ):
        memory.num_blocks(model, EngineConfig(kv_cache_gib=1e-9), TORCH)


def test_the_largest_step_can_be_run(llama: PreTrainedModel) -> None:
    sizes = []
    model = CausalLM(llama)
    model.hook_layer(0, lambda hidden, batch: sizes.append(len(hidden)))
    memory.run_largest_step(model, EngineConfig(max_batch_tokens=300), TORCH)
    memory.run_largest_step(model, EngineConfig(max_batch_tokens=3000), TORCH)
    assert sizes == [300, 3000], "several prompts, if the context is shorter"


@pytest.fixture
def gpu(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CausalLM]:
    """A model on a GPU with 80 GiB, of which `free` GiB are free. The largest step takes `taken` GiB."""

    def build(free: float, taken: float) -> CausalLM:
        model = CausalLM(llama)
        model.device = torch.device("cuda")
        device: dict[str, Any] = {
            "reset_peak_memory_stats": lambda _: None,
            "memory_allocated": lambda _: 7 * GIB,
            "max_memory_allocated": lambda _: (7 + taken) * GIB,
            "mem_get_info": lambda _: (free * GIB, 80 * GIB),
            "memory_reserved": lambda _: 7 * GIB,
            "empty_cache": lambda: None,
        }
        for name, value in device.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(memory, "run_largest_step", lambda *_: None)
        return model

    return build


CAPTURING = replace(TORCH, capture=lambda acts: iter(()))


@pytest.mark.parametrize(
    ("free", "taken", "backend", "expected"),
    [
        (80, 1, CAPTURING, 72.0),
        (20, 2, TORCH, 20 - 1.2 * 2),
        (20, 2, CAPTURING, 20 - 1.2 * (2 + 2 * 256 / 512) - 0.5),  # 256 of the 512 tokens are decodes
    ],
)
def test_on_cuda_enough_memory_is_left_for_steps(
    gpu: Callable[..., CausalLM], free: int, taken: int, backend: Backend, expected: float
) -> None:
    model = gpu(free, taken)
    blocks = memory.num_blocks(model, EngineConfig(), backend)
    assert blocks == pytest.approx(expected * GIB / per_block(model), rel=1e-3)


def test_logits_are_reserved_for(gpu: Callable[..., CausalLM], caplog: pytest.LogCaptureFixture) -> None:
    """512 rows of 128k logits take 0.25 GiB. All sizes of captured steps share one buffer."""
    model = gpu(20, 1)
    model.vocab_size = 2**17
    with caplog.at_level(logging.INFO):
        memory.num_blocks(model, EngineConfig(max_running=512), CAPTURING)
    assert "GPU memory: 80.00 GiB in all, 7.00 for weights, 20.00 free; of these, reserved: " in caplog.text
    assert "1.20 GiB for steps, 1.51 for sampling, 1.95 for captured steps" in caplog.text


@pytest.mark.parametrize("size", [{"kv_cache_gib": 16}, {"kv_cache_share": 0.2}])
def test_a_configured_size_on_cuda(gpu: Callable[..., CausalLM], size: dict[str, float]) -> None:
    model = gpu(20, 2)
    assert memory.num_blocks(model, EngineConfig(**size), TORCH) == 16 * GIB // per_block(model)
    model = gpu(18, 2)
    with pytest.raises(ConfigError, match=f"{next(iter(size))} asks for 16 GiB, but only 15.6 GiB of"):
        memory.num_blocks(model, EngineConfig(**size), TORCH)


def test_too_little_memory_is_refused(gpu: Callable[..., CausalLM]) -> None:
    with pytest.raises(ConfigError, match="the KV cache has 0 GiB"):
        memory.num_blocks(gpu(2, 3), EngineConfig(), TORCH)


def test_a_share_needs_a_gpu(llama: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match=r"needs a CUDA device; on a CPU, set engine.kv_cache_gib"):
        memory.num_blocks(CausalLM(llama), EngineConfig(kv_cache_share=0.5), TORCH)

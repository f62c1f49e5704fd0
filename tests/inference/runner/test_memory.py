"""Tests how much memory the KV cache gets, and that enough is left for steps."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from inference.backends.backend import TORCH
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
    assert sizes == [300, 512]


@pytest.mark.parametrize(
    ("free", "taken", "expected"), [(80, 1, 72.0), (20, 2, 20 - 1.2 * 2 - 1), (2, 3, None)]
)
def test_on_cuda_enough_memory_is_left_for_steps(
    llama: PreTrainedModel, free: int, taken: int, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CausalLM(llama)
    model.device = torch.device("cuda")
    device: dict[str, Any] = {
        "reset_peak_memory_stats": lambda _: None,
        "memory_allocated": lambda _: 7 * GIB,
        "max_memory_allocated": lambda _: (7 + taken) * GIB,
        "mem_get_info": lambda _: (free * GIB, 80 * GIB),
        "empty_cache": lambda: None,
    }
    for name, value in device.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(memory, "run_largest_step", lambda *_: None)
    if expected is None:
        with pytest.raises(ConfigError, match="the KV cache has 0 GiB"):
            memory.num_blocks(model, EngineConfig(), TORCH)
        return
    blocks = memory.num_blocks(model, EngineConfig(), TORCH)
    assert blocks == pytest.approx(expected * GIB / per_block(model), rel=1e-3)

"""The KV cache gets what memory there is, and steps keep theirs."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from inference import memory
from inference.backends import TORCH
from inference.config import EngineConfig
from inference.model import CausalLM

GIB = 2**30


def per_block(model: CausalLM) -> int:
    return 16 * sum(shape.num_bytes for shape in model.layer_shapes)


def test_what_is_configured_is_taken(llama: PreTrainedModel) -> None:
    model = CausalLM(llama)
    blocks = memory.num_blocks(model, EngineConfig(kv_cache_gib=0.5), TORCH)
    assert blocks == GIB // 2 // per_block(model)
    assert memory.num_blocks(model, EngineConfig(kv_cache_gib=1e-9), TORCH) == 1


def test_the_largest_step_can_be_run(llama: PreTrainedModel) -> None:
    sizes = []
    model = CausalLM(llama)
    model.hook_block(0, lambda hidden, batch: sizes.append(len(hidden)))
    memory.run_largest_step(model, EngineConfig(max_batch_tokens=300), TORCH)
    memory.run_largest_step(model, EngineConfig(max_batch_tokens=3000), TORCH)
    assert sizes == [300, 512]


@pytest.mark.parametrize(
    ("free", "taken", "expected"), [(80, 1, 72.0), (20, 2, 20 - 1.2 * 2 - 1), (2, 3, 0.0)]
)
def test_on_cuda_steps_keep_what_they_need(
    llama: PreTrainedModel, free: int, taken: int, expected: float, monkeypatch: pytest.MonkeyPatch
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
    blocks = memory.num_blocks(model, EngineConfig(), TORCH)
    assert blocks == pytest.approx(max(1, expected * GIB / per_block(model)), rel=1e-3)

"""Tests that models which would run but give wrong answers are refused at loading."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from inference.backends import selection
from inference.backends.backend import TORCH, Backend
from inference.interface.config import EngineConfig
from inference.models.causal_lm import CausalLM
from inference.models.errors import UnsupportedModelError
from inference.runner.adaptation import adapt
from tests.inference.conftest import (
    ARCHITECTURES,
    COMMON,
    build_driver,
    generate,
    make_model,
    request,
    sharpen,
)


def check(model: CausalLM) -> None:
    adapt(model, EngineConfig())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_supported_model_passes(architecture: str, dtype: torch.dtype) -> None:
    check(CausalLM(make_model(architecture).to(dtype)))


def test_verification_does_not_change_the_output() -> None:
    model = make_model("llama")
    driver = build_driver(model)
    check(driver.engine.runner.model)
    results = driver.run(request("a", [5, 6, 7], 12))
    assert results["a", 0].token_ids == generate(model, [5, 6, 7], 12)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("falcon_h1", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}),
        ("diffllama", {}),
        ("llama4_text", {"attention_chunk_size": 16, "num_local_experts": 2, "intermediate_size_mlp": 32}),
        ("bart", {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2}),
        ("stablelm", {}),
    ],
)
def test_a_model_that_would_answer_wrongly_is_refused(architecture: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**COMMON, **options})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    sharpen(model)
    with pytest.raises(UnsupportedModelError):
        check(CausalLM(model))


def test_kernels_that_fail_for_a_model_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(*_: Any) -> torch.Tensor:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(selection, "choose_backend", lambda *_: Backend(attend=attend))
    assert adapt(CausalLM(make_model("llama")), EngineConfig()) == TORCH


def test_kernels_with_wrong_results_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "choose_backend", lambda *_: Backend(attend=attend_to_nothing))
    assert adapt(CausalLM(make_model("llama")), EngineConfig()) == TORCH


def attend_to_nothing(query: torch.Tensor, _: torch.Tensor, value: torch.Tensor, *__: Any) -> torch.Tensor:
    return query.new_zeros(query.shape[2], query.shape[1], value.shape[-1])

"""Tests that models which would run but give wrong answers are refused at loading."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from inference.backends import selection
from inference.backends.backend import TORCH, Backend, KernelError
from inference.backends.cpu import build
from inference.interface.config import EngineConfig
from inference.models.causal_lm import CausalLM
from inference.models.errors import UnsupportedModelError
from inference.runner import verification, verification_record
from inference.runner.adaptation import adapt
from inference.runner.verification_record import VerificationRecord
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


@pytest.mark.parametrize(
    ("architecture", "options", "reason"),
    [
        (
            "phimoe",
            {"num_local_experts": 4, "sliding_window": 200},
            "sliding windows only in its attention mask",
        ),
        ("doge", {"keep_window_size": 200}, "keep_window_size"),
        (
            "llama4_text",
            {
                "layer_types": ["full_attention"] * 3,
                "no_rope_layers": [1, 1, 0],
                "attn_temperature_tuning": True,
                "num_local_experts": 2,
                "intermediate_size_mlp": 32,
            },
            "attn_temperature_tuning",
        ),
    ],
)
def test_a_model_that_would_answer_wrongly_in_long_contexts_is_refused(
    architecture: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        check(CausalLM(make_model(architecture, **options)))


def test_a_window_as_long_as_the_context_has_no_effect() -> None:
    check(
        CausalLM(make_model("phimoe", num_local_experts=4, sliding_window=COMMON["max_position_embeddings"]))
    )


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_as_the_reason(wrong: float) -> None:
    model = make_model("llama")
    model.model.layers[1].self_attn.q_proj.weight.data[0, 3] = wrong
    with pytest.raises(UnsupportedModelError, match=r"not a number.* float32"):
        check(CausalLM(model))


@pytest.mark.parametrize("wrong", ["raises", "is not a number"])
def test_a_quantized_model_that_cannot_compute_is_refused(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would start, and fail all requests."""

    def quantize(model: PreTrainedModel) -> None:
        if wrong == "raises":
            del model.model.layers[1].mlp.up_proj
        else:
            model.lm_head.weight.data.fill_(float("nan"))

    monkeypatch.setattr(selection, "choose_backend", lambda *_: Backend(quantize=quantize))
    with pytest.raises(
        KernelError, match=r"engine.quantization integer does not work .*(up_proj|not a number)"
    ):
        adapt(CausalLM(make_model("llama")), EngineConfig(quantization="integer"))


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


def test_a_model_is_verified_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    attend_as_torch(monkeypatch)
    references = count_references(monkeypatch)
    first = adapt_with_record(make_model("llama"), tmp_path)
    assert len(references) == 1
    again = adapt_with_record(make_model("llama"), tmp_path)
    assert len(references) == 1
    assert again == first


@pytest.mark.parametrize(
    "settings",
    [
        {"cache_directory": "other"},
        {"rotary": "half"},
        {"context_length": 64},
        {"quantization": "integer"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_model_is_verified_again_if_the_configuration_differs(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attend_as_torch(monkeypatch)
    references = count_references(monkeypatch)
    adapt_with_record(make_model("llama"), tmp_path)
    if "cache_directory" in settings:
        settings = {"cache_directory": str(tmp_path / settings["cache_directory"])}
    adapt_with_record(make_model("llama"), tmp_path, **settings)
    assert len(references) == 2


@pytest.mark.parametrize("part", ["weights", "model's configuration", "dtype", "kernels", "code"])
def test_a_model_is_verified_again_if_something_has_changed(
    part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attend_as_torch(monkeypatch)
    references = count_references(monkeypatch)
    adapt_with_record(make_model("llama"), tmp_path)
    model = make_model("llama")
    match part:
        case "weights":
            model.lm_head.weight.data[3, 5] += 0.001
        case "model's configuration":
            model.config.rms_norm_eps *= 2
        case "dtype":
            model = model.to(torch.bfloat16)
        case "kernels":
            monkeypatch.setattr(build, "library", lambda _: Path("tiller_cpu-another.so"))
        case "code":
            monkeypatch.setattr(verification_record, "_code_digest", lambda: "other code")
    adapt_with_record(model, tmp_path)
    assert len(references) == 2


def test_what_fails_is_verified_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(selection, "choose_backend", lambda *_: Backend(attend=attend_to_nothing, fuse=fuse))
    references = count_references(monkeypatch)
    for _ in range(2):
        assert adapt_with_record(make_model("llama"), tmp_path).attend is None
    assert len(references) == 2


def test_without_kernels_a_model_is_verified_even_if_it_was_with_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attend_as_torch(monkeypatch)
    references = count_references(monkeypatch)
    adapt_with_record(make_model("llama"), tmp_path)
    monkeypatch.setattr(selection, "choose_backend", lambda *_: TORCH)
    adapt_with_record(make_model("llama"), tmp_path)
    assert len(references) == 2


def test_a_cache_directory_that_cannot_be_written_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    attend_as_torch(monkeypatch)
    (tmp_path / "verified").write_text("a file where the directory should be")
    references = count_references(monkeypatch)
    for _ in range(2):
        assert adapt_with_record(make_model("llama"), tmp_path).fuse is fuse
    assert len(references) == 2


def fuse(_: torch.nn.Module) -> None:
    """Replaces nothing."""


def attend_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a back end in place that differs from torch's by name only."""
    monkeypatch.setattr(selection, "choose_backend", lambda *_: Backend(fuse=fuse, quantize=fuse))


def count_references(monkeypatch: pytest.MonkeyPatch) -> list[CausalLM]:
    """The models whose own output was computed."""
    models: list[CausalLM] = []

    def compute(model: CausalLM) -> verification.Expectation:
        models.append(model)
        return compute_reference(model)

    compute_reference = verification.compute_reference
    monkeypatch.setattr(verification, "compute_reference", compute)
    return models


def adapt_with_record(model: PreTrainedModel, cache: Path, **settings: Any) -> Backend:
    config = EngineConfig(**{"cache_directory": str(cache), **settings})
    loaded = CausalLM(model)
    return adapt(loaded, config, VerificationRecord(loaded, loaded.digest(), config))

"""Scaled rotary embeddings: the context that they promise, and logits that equal plain transformers'."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from inference.interface.config import ConfigError
from inference.models.causal_lm import CausalLM, UnsupportedModelError
from tests.inference.conftest import COMMON, build_driver, generate, make_model, request

THETA = {"rope_theta": 10000.0}
ORIGINAL = 32
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "short_factor": [1.1, 1.2, 1.3, 1.5], "long_factor": [2.0, 3.0, 5.0, 8.0]}


def rope_model(rope: dict[str, Any], longest: int = ORIGINAL) -> PreTrainedModel:
    return make_model("llama", rope_parameters={**THETA, **rope}, max_position_embeddings=longest)


@pytest.mark.parametrize(
    ("rope", "longest", "promised"),
    [
        ({"rope_type": "default"}, 32, 32),
        ({"rope_type": "yarn", "factor": 4.0}, 32, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128, 128),
        ({"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 32}, 40, 80),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}, 100, 100),
        ({"rope_type": "linear", "factor": 4.0}, 32, 128),
        ({"rope_type": "dynamic", "factor": 4.0}, 32, 32),
        ({**LLAMA3, "original_max_position_embeddings": 32}, 512, 512),
        ({**LONG, "original_max_position_embeddings": 32}, 512, 32),
    ],
)
def test_the_context_length_is_what_the_scaling_promises(
    rope: dict[str, Any], longest: int, promised: int
) -> None:
    assert CausalLM(rope_model(rope, longest)).context_length == promised


def test_scalings_for_each_type_of_layers_leave_the_whole_context_as_it_is() -> None:
    parameters = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert CausalLM(make_model("gemma3_text", rope_parameters=parameters)).context_length == 512


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "linear", "factor": 4.0},
        {**LLAMA3, "original_max_position_embeddings": 32},
    ],
)
def test_requests_beyond_the_original_length_equal_transformers(rope: dict[str, Any]) -> None:
    longest = 128 if rope["rope_type"] == "llama3" else ORIGINAL
    model = rope_model(rope, longest)
    plain = copy.deepcopy(model)
    prompt = [(7 * i) % 190 + 3 for i in range(70)]
    driver = build_driver(model)
    assert driver.engine.context_length == 128
    results = driver.run(request("long", prompt, 58), request("short", prompt[:5], 20))
    assert results["long", 0].token_ids == generate(plain, prompt, 58)
    assert results["short", 0].token_ids == generate(plain, prompt[:5], 20)


def phi3(**rope: Any) -> PreTrainedModel:
    parameters = {**LONG, **THETA, **rope}
    return make_model(
        "phi3",
        rope_parameters=parameters,
        max_position_embeddings=256,
        original_max_position_embeddings=ORIGINAL,
    )


def test_longrope_has_its_short_factors_up_to_the_original_length() -> None:
    model = phi3()
    plain = copy.deepcopy(model)
    driver = build_driver(model)
    assert driver.engine.context_length == ORIGINAL
    assert driver.run(request("a", [9, 8, 7], 29))["a", 0].token_ids == generate(plain, [9, 8, 7], 29)


def test_longrope_has_its_long_factors_in_a_larger_context() -> None:
    model = phi3()
    plain = copy.deepcopy(model)
    loaded = CausalLM(model, context_length=200)
    assert loaded.context_length == 256
    for tokens, is_equal in ((torch.arange(3, 103), True), (torch.arange(3, 13), False)):
        expected = plain(input_ids=tokens[None]).logits[0]
        assert torch.allclose(loaded.reference_logits(tokens), expected, atol=1e-4) is is_equal


def test_longrope_requests_beyond_the_original_length_equal_transformers() -> None:
    model = phi3()
    plain = copy.deepcopy(model)
    prompt = [(5 * i) % 190 + 3 for i in range(40)]
    driver = build_driver(model, context_length=100)
    results = driver.run(request("a", prompt, 60), request("b", [9, 8, 7], 20))
    assert results["a", 0].token_ids == generate(plain, prompt, 60)
    assert len(results["b", 0].token_ids) == 20


def test_one_longrope_sequence_does_not_change_another() -> None:
    loaded = CausalLM(phi3(), context_length=200)
    short = torch.arange(3, 13)
    before = loaded.reference_logits(short)
    loaded.reference_logits(torch.arange(3, 103))
    assert torch.equal(loaded.reference_logits(short), before)


def test_dynamic_scaling_changes_nothing_up_to_its_limit() -> None:
    model = rope_model({"rope_type": "dynamic", "factor": 4.0})
    plain = copy.deepcopy(model)
    driver = build_driver(model)
    assert driver.run(request("a", [9, 8, 7], 29))["a", 0].token_ids == generate(plain, [9, 8, 7], 29)
    with pytest.raises(
        ConfigError, match=r"engine.context_length is 33, but the model's own limit is 32 tokens"
    ):
        build_driver(rope_model({"rope_type": "dynamic", "factor": 4.0}), context_length=33)


def phi_moe() -> PreTrainedModel:
    scaling = {**LONG, **THETA, "short_mscale": 1.1, "long_mscale": 1.3}
    config = AutoConfig.for_model(
        "phimoe",
        **{**COMMON, "max_position_embeddings": 512, "num_local_experts": 2},
        rope_parameters={**scaling, "original_max_position_embeddings": ORIGINAL},
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def test_longrope_outside_of_transformers_common_code_has_only_the_original_length() -> None:
    assert CausalLM(phi_moe()).context_length == ORIGINAL
    with pytest.raises(UnsupportedModelError, match="more than 32 tokens"):
        CausalLM(phi_moe(), context_length=100)


def test_a_batch_dependent_scaling_without_a_known_module_is_refused() -> None:
    model = make_model()
    del model.model.rotary_emb.rope_type
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(UnsupportedModelError, match="'dynamic' are not supported in this model"):
        CausalLM(model)

"""A model generates the same with fused layers, and in the engine with all Triton kernels."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from inference.backends.backend import Backend
from inference.backends.cuda import fusion, layers, paged_attention, sampling
from inference.models.causal_lm import CausalLM, load
from tests.inference.conftest import ARCHITECTURES, build_driver, generate, make_model, request
from tests.inference.models.pharia_checkpoint import make_weights, reference_greedy, write_checkpoint
from tests.inference.recorder import Recorder
from tests.inference.steering.conftest import added_vectors, steered, steered_driver
from tests.inference.test_exactness import random_prompt

BACKEND = Backend(attend=paged_attention.attend, fuse=fusion.fuse, weigh=sampling.weigh, steer=layers.steer)
FUSED = {"llama", "qwen2", "granite"}


def count_fused(model: PreTrainedModel) -> int:
    return sum("forward" in vars(layer) for layer in model.model.layers)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_which_layers_are_fused(architecture: str) -> None:
    model = make_model(architecture)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    CausalLM(model).transform(fusion.fuse)
    assert count_fused(model) == (3 if architecture in FUSED else 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("llama", {"hidden_act": "gelu"}), ("granite", {"residual_multiplier": 0.5})],
)
def test_layers_with_other_operations_are_not_fused(architecture: str, options: dict[str, object]) -> None:
    model = make_model(architecture, **options)
    CausalLM(model).transform(fusion.fuse)
    assert count_fused(model) == 0


def test_attention_biases_are_fused_and_mlp_biases_prevent_fusion() -> None:
    model = make_model("llama", attention_bias=True, mlp_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    CausalLM(model).transform(fusion.fuse)
    assert count_fused(model) == 0
    model = make_model("llama", attention_bias=True)
    CausalLM(model).transform(fusion.fuse)
    assert count_fused(model) == 3


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral"])
def test_greedy_decoding_equals_generate(architecture: str) -> None:
    model = make_model(architecture)
    prompts = [random_prompt(i, length) for i, length in enumerate([1, 22])]
    expected = [generate(model, prompt, 4) for prompt in prompts]
    driver = build_driver(model, backend=BACKEND, max_batch_tokens=15)
    results = driver.run(*(request(f"r{i}", prompt, 4) for i, prompt in enumerate(prompts)))
    assert [results[f"r{i}", 0].token_ids for i in range(len(prompts))] == expected


def test_steered_and_unsteered_sequences_together(llama: PreTrainedModel) -> None:
    requests = [request(f"r{i}", random_prompt(i, 5 + i), 4) for i in range(3)]
    mixed = [steered(requests[0], "kind"), requests[1], steered(requests[2], "rude", strength=-1.0)]
    expected = steered_driver(llama).run(*mixed)
    actual = steered_driver(llama, backend=BACKEND, capture=Recorder(), max_running=3).run(*mixed)
    tokens = {key: result.token_ids for key, result in expected.items()}
    assert {key: result.token_ids for key, result in actual.items()} == tokens


def test_pharia_generates_what_its_reference_generates(tmp_path: Path) -> None:
    weights = make_weights()
    model = load(write_checkpoint(tmp_path, weights), torch.float32, torch.get_default_device())._model
    prompts = [random_prompt(i, length) for i, length in enumerate([1, 22, 9])]
    requests = [request(f"r{i}", prompt, 4) for i, prompt in enumerate(prompts)]
    driver = steered_driver(model, backend=BACKEND, max_batch_tokens=15, steering_blocks=(0, 1))
    results = driver.run(requests[0], requests[1], steered(requests[2], "kind", strength=2.0))
    added = [{}, {}, added_vectors((0, 1), ["kind"], 2.0)]
    expected = [reference_greedy(weights, prompt, 4, one) for prompt, one in zip(prompts, added, strict=True)]
    assert [results[f"r{i}", 0].token_ids for i in range(3)] == expected
    assert expected[2] != reference_greedy(weights, prompts[2], 4), "the steering is too weak"

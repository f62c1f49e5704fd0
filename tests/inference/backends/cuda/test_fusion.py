"""A model generates the same with fused layers, and in the engine with all Triton kernels."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama

from inference.backends.backend import Backend
from inference.backends.cuda import fusion, layers, paged_attention, sampling
from inference.backends.trial import Trial
from inference.compute.attention import PagedInputs
from inference.models import shards
from inference.models.causal_lm import CausalLM, load
from inference.runner.differentiation import differentiate
from inference.scheduling.probe import Derivative
from inference.steering.bank import SteeringBank
from inference.steering.injection import SteeringOperations, inject
from tests.inference.conftest import ARCHITECTURES, build_driver, generate, make_model, request
from tests.inference.models.pharia_checkpoint import make_weights, reference_greedy, write_checkpoint
from tests.inference.recorder import Recorder
from tests.inference.runner.test_differentiation import ADDED
from tests.inference.steering.conftest import added_vectors, steered, steered_driver
from tests.inference.test_exactness import random_prompt

BACKEND = Backend(
    attend=paged_attention.attend,
    fuse=fusion.fuse,
    sampling=sampling.OPERATIONS,
    steering=SteeringOperations(steer=layers.steer),
)
FUSED = {"llama", "qwen2", "qwen3", "granite"}


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


@pytest.mark.parametrize("architecture", sorted(FUSED))
def test_a_fused_model_can_be_differentiated(architecture: str) -> None:
    derivatives = [Derivative([(random_prompt(0, 9), random_prompt(1, 12))], ADDED) for _ in range(2)]
    for derivative, is_fused in zip(derivatives, (False, True), strict=True):
        model = make_model(architecture)
        causal_lm = CausalLM(model)
        if is_fused:
            causal_lm.transform(fusion.fuse)
            assert count_fused(model)
        differentiate(causal_lm, derivative)
    plain, fused = (derivative.gradients for derivative in derivatives)
    np.testing.assert_allclose(fused, plain, rtol=1e-3, atol=1e-4 * np.abs(plain).max())


def test_a_layer_that_fails_in_the_trial_stays_as_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama")
    causal_lm = CausalLM(model)

    def forward(hidden_states: torch.Tensor, **arguments: object) -> torch.Tensor:
        raise TypeError("this layer needs position_ids")

    monkeypatch.setattr(model.model.layers[1], "forward", forward)
    before = model.model.layers[1].self_attn.q_proj.weight.clone()
    causal_lm.transform(fusion.fuse)
    assert [isinstance(layer.forward, fusion._FusedForward) for layer in model.model.layers] == [
        True,
        False,
        True,
    ]
    assert "a decoder layer is not fused, so the server will be slower: TypeError: this layer" in caplog.text
    assert torch.equal(model.model.layers[1].self_attn.q_proj.weight, before)


def test_scales_that_grow_with_the_position_are_not_fused() -> None:
    model = make_model("llama")
    causal_lm = CausalLM(model)
    model.config.rope_parameters = {**model.config.rope_parameters, "llama_4_scaling_beta": 0.1}
    causal_lm.transform(fusion.fuse)
    assert count_fused(model) == 0


def test_norms_of_heads_are_fused_only_if_they_are_those_of_qwen(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_plus_weight(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:  # as in Gemma
        normal = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + norm.variance_epsilon)
        return ((1 + norm.weight) * normal).to(x.dtype)

    model = make_model("qwen3")
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            torch.nn.init.normal_(parameter)
    other = copy.deepcopy(model)
    other_norm = type("OtherNorm", (type(model.model.norm),), {"forward": one_plus_weight})
    for layer in other.model.layers:
        layer.self_attn.q_norm.__class__ = layer.self_attn.k_norm.__class__ = other_norm
    for one, expected in ((model, 3), (other, 0)):
        CausalLM(one).transform(fusion.fuse)
        assert count_fused(one) == expected


def rotate_interleaved(
    queries: torch.Tensor, keys: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    def rotate(x: torch.Tensor) -> torch.Tensor:
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return x * cosines[:, None] + turned * sines[:, None]

    return rotate(queries), rotate(keys)


def test_another_order_of_the_rotated_pairs_prevents_fusion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rotate_interleaved)
    model = make_model("llama")
    CausalLM(model).transform(fusion.fuse)
    assert count_fused(model) == 0


def test_a_partial_rotation_is_left_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    original = modeling_llama.apply_rotary_pos_emb

    def rotate_part(
        queries: torch.Tensor, keys: torch.Tensor, *angles: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        size = angles[0].shape[-1]
        rotated = original(queries[..., :size], keys[..., :size], *angles)
        return tuple(
            torch.cat((part, whole[..., size:]), -1)
            for part, whole in zip(rotated, (queries, keys), strict=True)
        )

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rotate_part)
    model = make_model("llama")
    rotary = model.model.rotary_emb
    rotary.inv_freq = rotary.inv_freq[: len(rotary.inv_freq) // 2]
    expected = generate(model, random_prompt(0, 9), 4)
    results = build_driver(model, backend=BACKEND).run(request("r", random_prompt(0, 9), 4))
    assert results["r", 0].token_ids == expected


@pytest.mark.parametrize("architecture", sorted(FUSED))
@pytest.mark.parametrize("tokens", [1, 5])
def test_the_angles_of_real_models_need_no_copy(architecture: str, tokens: int) -> None:
    model = make_model(architecture)
    angles = model.model.rotary_emb(torch.zeros(1, tokens, 32), torch.arange(tokens)[None])
    assert all(part.is_contiguous() and part.shape == (1, tokens, 8) for part in angles)


def attend_to_first_tile(
    query: torch.Tensor, inputs: PagedInputs, *others: object, **options: object
) -> torch.Tensor:
    wrong = inputs._replace(positions=inputs.positions.clamp(max=63))
    return paged_attention.attend_stored(query, wrong, *others, **options)


def attend_in_order(
    query: torch.Tensor, inputs: PagedInputs, *others: object, **options: object
) -> torch.Tensor:
    wrong = inputs._replace(block_tables=inputs.block_tables.sort(-1).values)
    return paged_attention.attend_stored(query, wrong, *others, **options)


@pytest.mark.parametrize("wrong", [attend_to_first_tile, attend_in_order])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_trial_detects_attention_that_is_wrong_in_long_contexts(
    wrong: Callable[..., torch.Tensor], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for act, expected in ((paged_attention.attend_stored, 3), (wrong, 0)):
        monkeypatch.setattr(fusion, "attend_stored", act)
        model = make_model("llama").to(dtype)
        CausalLM(model).transform(fusion.fuse)
        assert count_fused(model) == expected


def test_fusing_again_changes_nothing() -> None:
    model = make_model("llama")
    CausalLM(model).transform(fusion.fuse)
    before = [vars(layer)["forward"] for layer in model.model.layers]
    weights = [parameter.data_ptr() for parameter in model.parameters()]
    CausalLM(model).transform(fusion.fuse)  # also examines the fused layers
    assert [vars(layer)["forward"] for layer in model.model.layers] == before
    assert [parameter.data_ptr() for parameter in model.parameters()] == weights


def test_the_trial_runs_no_hook_of_the_layer() -> None:
    model = make_model("llama")
    causal_lm = CausalLM(model)
    calls = []
    for layer in causal_lm.layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
    causal_lm.transform(fusion.fuse)
    assert count_fused(model) == 3
    assert calls == []


def test_the_trial_steers_nothing(llama: PreTrainedModel) -> None:
    causal_lm = CausalLM(llama)
    bank = SteeringBank(2, len(causal_lm.layers), causal_lm.hidden_size, causal_lm.device)
    bank.vectors.fill_(1.0)
    inject(causal_lm, bank, SteeringOperations())
    trial = Trial(2, 8, paged_attention.attend, like=llama.lm_head.weight)
    before = trial.run(llama.model.layers[0].forward, causal_lm.hidden_size)
    assert torch.equal(trial.run(llama.model.layers[0], causal_lm.hidden_size), before)


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_outputs_the_whole_sum_and_keeps_its_input(bias: bool) -> None:
    """Hooks of the layer change the output, and hooks of the layer before may keep the input."""
    layer = CausalLM(make_model("llama")).layers[0]
    if bias:
        layer.mlp.down_proj.bias = torch.nn.Parameter(torch.ones(32))
    trial = Trial(2, 8, paged_attention.attend, like=layer.input_layernorm.weight)
    kept = []

    def forward(hidden_states: torch.Tensor, **arguments: object) -> torch.Tensor:
        kept.append((hidden_states, hidden_states.clone()))
        return layer.forward(hidden_states, **arguments)

    with torch.inference_mode():
        expected = trial.run(forward, 32)
        fusion._fuse_layer(layer)
        assert "forward" in vars(layer)
        torch.testing.assert_close(trial.run(forward, 32), expected)
    assert all(torch.equal(*pair) for pair in kept)


def test_a_layer_of_a_group_is_fused_with_its_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over all processes comes before the residual is added."""
    monkeypatch.setattr(shards.dist, "all_reduce", lambda part: part.mul_(3))
    layer = CausalLM(make_model("llama")).layers[0]
    alone = Trial(2, 8, paged_attention.attend, like=layer.input_layernorm.weight)
    with torch.inference_mode():
        without_sums = alone.run(layer.forward, 32)
        for part, name in ((layer.self_attn, "o_proj"), (layer.mlp, "down_proj")):
            linear = getattr(part, name)
            setattr(part, name, shards.RowParallelLinear(*reversed(linear.weight.shape), bias=False))
            getattr(part, name).weight = linear.weight
        expected = alone.run(layer.forward, 32)
        fusion.fuse(torch.nn.ModuleList([layer]))
        assert isinstance(vars(layer)["forward"], fusion._FusedForward)
        torch.testing.assert_close(alone.run(layer.forward, 32), expected)
    assert not torch.allclose(without_sums, expected)


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


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral", "qwen3"])
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
    limits = {"max_running": 3, "context_length": 20, "max_batch_tokens": 20}  # for a short start
    actual = steered_driver(llama, backend=BACKEND, capture=Recorder(), **limits).run(*mixed)
    tokens = {key: result.token_ids for key, result in expected.items()}
    assert {key: result.token_ids for key, result in actual.items()} == tokens


def test_pharia_generates_what_its_reference_generates(tmp_path: Path) -> None:
    weights = make_weights()
    model = load(write_checkpoint(tmp_path, weights), torch.float32, torch.get_default_device())._model
    prompts = [random_prompt(i, length) for i, length in enumerate([1, 22, 9])]
    requests = [request(f"r{i}", prompt, 4) for i, prompt in enumerate(prompts)]
    driver = steered_driver(model, backend=BACKEND, max_batch_tokens=15)
    results = driver.run(requests[0], requests[1], steered(requests[2], "kind", strength=2.0))
    added = [{}, {}, added_vectors(["kind"], 2.0)]
    expected = [reference_greedy(weights, prompt, 4, one) for prompt, one in zip(prompts, added, strict=True)]
    assert [results[f"r{i}", 0].token_ids for i in range(3)] == expected
    assert expected[2] != reference_greedy(weights, prompts[2], 4), "the steering is too weak"

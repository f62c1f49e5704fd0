"""Fused operations compute what the modules they replace compute, on every architecture, and are used."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from inference.backends.cpu import backend as cpu
from inference.backends.cpu import fusion
from inference.backends.cpu.levels import features_of_processor
from inference.backends.cpu.linear import QuantizedLinear, replace_linears
from inference.backends.cpu.modules import QuantizedGatedMLP, RMSNorm
from inference.backends.cpu.quantized_attention import QuantizedAttention
from inference.interface.config import EngineConfig
from inference.models.causal_lm import CausalLM
from tests.inference.backends.cpu.weights import in_four_bits
from tests.inference.conftest import (
    ARCHITECTURES,
    Result,
    build_driver,
    generate,
    make_model,
    plain_attention,
    request,
)

CACHE_DIRECTORY = Path(EngineConfig().cache_directory).expanduser()
PROMPT = torch.tensor([[5, 6, 7, 90, 12, 41, 8, 77, 3, 150, 33]], device="cpu")

SEVERAL_PROMPTS = [PROMPT.roll(i) for i in range(5)]
"""The last bit of a float32 sum differs between processors, and can make an activation round up instead of
down. With 4-bit weights this changes the activation by 1/254 of its range, and all later results by more than
rounding. It happens early in about one text of fifty, so hardly ever in most of these prompts."""

BITS = pytest.mark.parametrize("bits", [4, 8])


def make_rounded(architecture: str, bits: int, **options: object) -> PreTrainedModel:
    """Makes a model. If `bits` is 4, its linear layers have weights that fit into 4 bits exactly."""
    model = make_model(architecture, **{"intermediate_size": 64, **options})
    for module in model.modules():
        if bits == 4 and isinstance(module, nn.Linear):
            module.weight.data = in_four_bits(module.weight.data)
    return model


def logits(model: PreTrainedModel, prompt: torch.Tensor = PROMPT) -> torch.Tensor:
    with plain_attention(model), torch.inference_mode():
        return model(prompt).logits[0]


def count(model: PreTrainedModel, kind: type) -> int:
    return sum(type(module) is kind for module in model.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fused_model_gives_the_same_logits(architecture: str) -> None:
    model = make_model(architecture)
    expected = logits(model)
    fusion.fuse(model)
    assert (logits(model) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "granite"])
def test_norms_are_fused(architecture: str) -> None:
    model = make_model(architecture)
    fusion.fuse(model)
    assert count(model, RMSNorm) >= 2 * 3 + 1


def test_a_norm_of_another_kind_is_not_fused() -> None:
    model = make_model("gemma2")  # its norm multiplies with 1 + weight
    fusion.fuse(model)
    assert count(model, RMSNorm) == 0


@pytest.mark.parametrize(
    ("architecture", "attentions", "mlps", "layers"),
    [
        ("llama", 3, 3, 3),
        ("mistral", 0, 3, 0),  # only its code knows which layers have a sliding window
        ("qwen2", 3, 3, 3),
        ("qwen3", 0, 3, 0),  # it normalizes queries and keys
        ("gemma2", 0, 0, 0),  # it has another activation, and a softcap
        ("granite", 3, 3, 0),  # it scales what it adds to the residual
        ("starcoder2", 3, 0, 0),  # it has biases, and another MLP
        ("phi3", 0, 0, 0),  # its projections are joined already
    ],
)
@BITS
def test_which_parts_of_a_quantized_model_are_fused(
    architecture: str, attentions: int, mlps: int, layers: int, bits: int
) -> None:
    options = {"residual_multiplier": 0.5} if architecture == "granite" else {}
    model = make_rounded(architecture, bits, head_dim=16, **options)
    CausalLM(model)
    replace_linears(model)
    fusion.fuse(model)
    assert (count(model, QuantizedAttention), count(model, QuantizedGatedMLP)) == (attentions, mlps)
    assert sum("forward" in vars(layer) for layer in model.model.layers) == layers


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("mistral", {"sliding_window": 4096}), ("gemma2", {"attn_logit_softcapping": 1000.0})],
)
def test_attention_with_untestable_options_is_not_fused(architecture: str, options: dict[str, float]) -> None:
    model = make_model(architecture, head_dim=16, **options)
    CausalLM(model)
    replace_linears(model)
    fusion.fuse(model)
    assert count(model, QuantizedAttention) == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@BITS
def test_fusing_a_quantized_model_keeps_its_logits(architecture: str, bits: int) -> None:
    model = make_rounded(architecture, bits)
    replace_linears(model)
    expected = torch.stack([logits(model, prompt) for prompt in SEVERAL_PROMPTS])
    fusion.fuse(model)
    actual = torch.stack([logits(model, prompt) for prompt in SEVERAL_PROMPTS])
    errors = (actual - expected).abs().flatten(1) / expected.abs().max()
    assert errors.median(1).values.median() < 1e-4
    assert errors.max() < (0.1 if bits == 4 else 1e-3)


def distance(result: Result, reference: PreTrainedModel, prompt: list[int]) -> torch.Tensor:
    """How far the log probabilities of an answer's tokens are from those of the reference model."""
    rows = logits(reference, torch.tensor([prompt + result.token_ids])).log_softmax(-1)
    expected = rows[len(prompt) - 1 : -1].gather(-1, torch.tensor(result.token_ids)[:, None])[:, 0]
    actual = torch.tensor([event.logprobs.logprob for event in result.events if event.logprobs])
    return (actual - expected).abs()


def engine_errors(architecture: str, bits: int, cache_dtype: torch.dtype | None) -> torch.Tensor:
    """Compares decoding with fused layers to one plain forward pass of the model without fusion.

    The prompts' errors of log probabilities [prompts, tokens].
    """
    model = make_rounded(architecture, bits, head_dim=16)
    backend = replace(cpu.load(CACHE_DIRECTORY), quantized_cache_dtype=cache_dtype)
    driver = build_driver(model, backend=backend, quantization="integer")
    prompts = [prompt[0].tolist() for prompt in SEVERAL_PROMPTS]
    results = driver.run(*(request(f"r{i}", prompt, 24, top_logprobs=0) for i, prompt in enumerate(prompts)))
    reference = make_rounded(architecture, bits, head_dim=16)
    replace_linears(reference)
    return torch.stack([distance(results[f"r{i}", 0], reference, p) for i, p in enumerate(prompts)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@BITS
def test_the_engine_gives_the_logprobs_of_the_quantized_model(architecture: str, bits: int) -> None:
    """With a float32 cache, so that only the last bits of sums differ."""
    errors = engine_errors(architecture, bits, None)
    assert errors.max() < (0.5 if bits == 4 else 0.02)
    assert errors.median(1).values.median() < 0.01


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@BITS
def test_a_float16_cache_changes_logprobs_by_its_rounding_only(architecture: str, bits: int) -> None:
    """These models have large random weights, so rounding a key by 1/2048 shows in every later token. With
    4-bit weights, it also makes some activations round up instead of down, each by 1/254 of its range."""
    errors = engine_errors(architecture, bits, torch.float16)
    assert errors.median() < (0.1 if bits == 4 else 0.02)


@BITS
def test_a_quantized_sequence_does_not_depend_on_the_others(bits: int) -> None:
    prompts = [[5 + i, 9, 4 + 2 * i, 30 + i] * (1 + i) for i in range(6)]

    def run(indices: list[int]) -> dict[int, list[float]]:
        driver = build_driver(make_rounded("llama", bits, head_dim=16), quantization="integer")
        results = driver.run(*[request(f"r{i}", prompts[i], 20, top_logprobs=0) for i in indices])
        return {
            i: [event.logprobs.logprob for event in results[f"r{i}", 0].events if event.logprobs]
            for i in indices
        }

    together = run(list(range(6)))
    for i in range(6):
        assert run([i])[i] == together[i]


@BITS
def test_a_quantized_sequence_does_not_depend_on_how_its_prompt_is_cut(bits: int) -> None:
    """Results are equal bit for bit: a difference in the last bit could round an activation differently."""
    prompt = [5 + i * 7 % 150 for i in range(90)]

    def run(max_batch_tokens: int) -> list[float]:
        model = make_rounded("llama", bits, head_dim=16)
        driver = build_driver(model, quantization="integer", max_batch_tokens=max_batch_tokens)
        events = driver.run(request("a", prompt, 20, top_logprobs=0))["a", 0].events
        return [event.logprobs.logprob for event in events if event.logprobs]

    whole = run(128)
    for max_batch_tokens in (1, 8, 89):
        assert run(max_batch_tokens) == whole


OTHERS = {
    "gemma4_text": {"hidden_size_per_layer_input": 0, "sliding_window": 9, "num_hidden_layers": 6},
    "glm4_moe": {  # rotates a half of each head
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "granitemoehybrid": {  # rotates nothing
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": 16,
        "layer_types": ["attention"] * 3,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_expand": 2,
        "position_embedding_type": None,
    },
    "hunyuan_v1_moe": {  # its router multiplies with the weights of a linear layer itself
        "num_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_topk": 2,
        "moe_intermediate_size": 16,
    },
}
"""Models whose parts have names that the fusion knows, but need other arguments or give other results."""


@pytest.mark.parametrize("architecture", OTHERS)
def test_models_that_only_look_like_known_ones_answer_as_alone(architecture: str) -> None:
    model = make_model(architecture, **OTHERS[architecture])
    prompt = PROMPT[0].tolist()
    expected = generate(model, prompt, 12)
    assert build_driver(model).run(request("r", prompt, 12))["r", 0].token_ids == expected


@pytest.mark.parametrize("architecture", OTHERS)
def test_models_that_only_look_like_known_ones_run_quantized(architecture: str) -> None:
    model = make_model(architecture, **OTHERS[architecture])
    reference = make_model(architecture, **OTHERS[architecture])
    replace_linears(reference)
    prompt = PROMPT[0].tolist()
    result = build_driver(model, quantization="integer").run(request("r", prompt, 12, top_logprobs=0))["r", 0]
    assert distance(result, reference, prompt).median() < 0.02


def test_the_engine_uses_quantized_layers() -> None:
    model = make_model("llama", head_dim=16)
    build_driver(model, quantization="integer")
    assert count(model, QuantizedLinear) > 0
    assert count(model, QuantizedAttention) == 3


@pytest.mark.skipif("f16c" not in features_of_processor(), reason="the cache of a quantized model is float32")
@BITS
def test_a_quantized_model_has_room_for_twice_as_many_tokens(bits: int) -> None:
    blocks = [
        build_driver(
            make_rounded("llama", bits), quantization=name, kv_cache_gib=0.01
        ).engine.runner.num_blocks
        for name in ("none", "integer")
    ]
    assert blocks[1] // 2 == blocks[0]

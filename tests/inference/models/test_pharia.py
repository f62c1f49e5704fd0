"""The engine computes what the reference computes from the same Pharia checkpoint, and runs no code of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from inference.building import build_engine
from inference.interface.config import ConfigError, EngineConfig
from inference.models.causal_lm import CausalLM, load
from inference.models.errors import UnsupportedModelError
from tests.inference.conftest import build_driver, make_model, request
from tests.inference.models.pharia_checkpoint import (
    CONFIG,
    Weights,
    make_weights,
    reference_greedy,
    reference_logits,
    write_checkpoint,
)
from tests.inference.steering.conftest import (
    added_vectors,
    concepts_at,
    random_tokens,
    steered,
    steered_driver,
)

DEVICE = torch.get_default_device()
WEIGHTS = make_weights()
TOKENS = random_tokens(0, 60)
DEFAULTS = {
    "architectures",
    "attention_bias",
    "hidden_act",
    "max_position_embeddings",
    "mlp_bias",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "torch_dtype",
}
"""Fields of config.json that may be missing."""


def load_model(directory: Path, weights: Weights = WEIGHTS, **overrides: Any) -> PreTrainedModel:
    return load(write_checkpoint(directory, weights, **overrides), torch.float32, DEVICE)._model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pharia"), WEIGHTS)


@pytest.fixture
def pharia(checkpoint: Path) -> PreTrainedModel:
    return load(checkpoint, torch.float32, DEVICE)._model


def logits_of(model: CausalLM) -> torch.Tensor:
    with torch.inference_mode():
        return model.reference_logits(torch.tensor(TOKENS, device=model.device)).cpu()


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"num_attention_heads": 2},
        {"rope_theta": 10_000},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"tie_word_embeddings": True},
    ],
    ids=str,
)
def test_the_logits_are_those_of_the_reference(tmp_path: Path, overrides: dict[str, Any]) -> None:
    weights = make_weights(**overrides)
    if overrides.get("tie_word_embeddings"):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    model = load(write_checkpoint(tmp_path, weights, **overrides), torch.float32, DEVICE)
    expected = reference_logits(weights, TOKENS, **overrides)
    torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-4)


def test_defaults_of_the_configuration_are_those_of_the_checkpoints_code(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, WEIGHTS)
    needed = {name: value for name, value in CONFIG.items() if name not in DEFAULTS}
    (tmp_path / "config.json").write_text(json.dumps(needed))
    model = load(tmp_path, None, DEVICE)
    assert (model.context_length, model.dtype) == (8192, torch.float32)
    torch.testing.assert_close(logits_of(model), reference_logits(WEIGHTS, TOKENS), rtol=0, atol=1e-4)


def test_the_rotary_form_is_a_setting(checkpoint: Path) -> None:
    half = reference_logits(WEIGHTS, TOKENS, rotary="half")
    assert (half - reference_logits(WEIGHTS, TOKENS)).abs().max() > 1, "the forms differ too little"
    torch.testing.assert_close(
        logits_of(load(checkpoint, torch.float32, DEVICE, "half")), half, rtol=0, atol=1e-4
    )
    common = {"device": DEVICE.type, "dtype": "float32", "kv_cache_gib": 0.01}
    config = EngineConfig(source=str(checkpoint), rotary="half", **common)
    engine, _ = build_engine(config)
    torch.testing.assert_close(logits_of(engine.runner.model), half, rtol=0, atol=1e-4)


def test_the_rotary_form_is_refused_for_a_model_that_has_one_form(tmp_path: Path) -> None:
    make_model("starcoder2").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.rotary.*starcoder2"):
        load(tmp_path, torch.float32, DEVICE, "interleaved")


def test_greedy_tokens_are_those_of_the_reference(pharia: PreTrainedModel) -> None:
    prompts = [random_tokens(i, length) for i, length in enumerate([1, 5, 17, 40])]
    expected = [reference_greedy(WEIGHTS, prompt, 20) for prompt in prompts]
    assert len({token for output in expected for token in output}) > 10, "the outputs vary too little"
    driver = build_driver(pharia, max_batch_tokens=16)
    results = driver.run(*(request(f"r{i}", prompt, 20) for i, prompt in enumerate(prompts)))
    assert [results[f"r{i}", 0].token_ids for i in range(len(prompts))] == expected


def test_a_mixed_batch_is_steered_as_the_reference(pharia: PreTrainedModel) -> None:
    strengths = (-2.0, 0.0, 0.7, 2.0)
    prompts = [random_tokens(i, length) for i, length in enumerate([2, 17, 30, 9])]
    known = concepts_at(0, 2)
    driver = steered_driver(pharia, concepts=known, max_batch_tokens=32)
    requests = [request(f"r{i}", prompt, 12, top_logprobs=3) for i, prompt in enumerate(prompts)]
    results = driver.run(
        *(steered(one, "kind", strength=s) if s else one for one, s in zip(requests, strengths, strict=True))
    )
    for i, (prompt, strength) in enumerate(zip(prompts, strengths, strict=True)):
        added = added_vectors(["kind"], strength, known)
        result = results[f"r{i}", 0]
        assert result.token_ids == reference_greedy(WEIGHTS, prompt, 12, added)
        rows = reference_logits(WEIGHTS, prompt + result.token_ids, added).log_softmax(-1)
        for event, row in zip(result.events, rows[len(prompt) - 1 : -1], strict=True):
            assert event.logprobs is not None
            assert event.logprobs.logprob == pytest.approx(row[event.token_id].item(), abs=1e-3)
            assert [token for token, _ in event.logprobs.top] == row.topk(3).indices.tolist()
    assert results["r3", 0].token_ids != reference_greedy(WEIGHTS, prompts[3], 12), "the steering is too weak"


@pytest.mark.skipif(DEVICE.type != "cpu", reason="only the CPU computes with integers")
def test_integer_quantization_computes_with_rounded_weights(pharia: PreTrainedModel) -> None:
    """8 bits: each 32 weights of an output share a scale."""
    rounded = {name: rounded_to_8_bits(name, tensor) for name, tensor in WEIGHTS.items()}
    prompt = random_tokens(3, 25)
    driver = build_driver(pharia, quantization="integer")
    result = driver.run(request("a", prompt, 20, top_logprobs=0))["a", 0]
    rows = reference_logits(rounded, prompt + result.token_ids).log_softmax(-1)[len(prompt) - 1 : -1]
    expected = [row[token].item() for row, token in zip(rows, result.token_ids, strict=True)]
    actual = [event.logprobs.logprob for event in result.events if event.logprobs]
    assert actual == pytest.approx(expected, abs=5e-3)
    exact = reference_logits(WEIGHTS, prompt + result.token_ids).log_softmax(-1)[len(prompt) - 1 : -1]
    assert [row[t].item() for row, t in zip(exact, result.token_ids, strict=True)] != pytest.approx(
        expected, abs=5e-3
    )


def rounded_to_8_bits(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dim() == 1 or "embed" in name:
        return tensor
    groups = tensor.unflatten(1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / scale).round() * scale).flatten(1)


@pytest.mark.parametrize("shards", [1, 3])
def test_bfloat16_weights_load_from_all_shards_and_files_stay_as_they_are(
    tmp_path: Path, shards: int
) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in WEIGHTS.items()}
    write_checkpoint(tmp_path, weights, shards=shards)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("*.safetensors")}
    model = load(tmp_path, None, DEVICE)
    assert model.dtype == torch.bfloat16
    exact = load(tmp_path, torch.float32, DEVICE)
    torch.testing.assert_close(logits_of(exact), reference_logits(weights, TOKENS), rtol=0, atol=1e-4)
    assert (logits_of(model) - logits_of(exact)).abs().mean() < 0.1
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*.safetensors")} == before
    assert len(before) == shards


def test_the_code_of_the_checkpoint_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    config = EngineConfig(
        source=str(write_checkpoint(tmp_path / "model", WEIGHTS, trace=trace)),
        device=DEVICE.type,
        kv_cache_gib=0.01,
    )
    _, info = build_engine(config)
    assert info.context_length == 8192
    assert not trace.exists()
    with pytest.raises(RuntimeError, match="the code ran"):
        exec((tmp_path / "model" / "modeling_pharia.py").read_text())
    assert trace.exists(), "the trap does not work"


def without(name: str) -> Weights:
    return {key: tensor for key, tensor in WEIGHTS.items() if key != name}


BIAS = "model.layers.1.mlp.up_proj.bias"
GATE = "model.layers.2.mlp.gate_proj.weight"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (without(BIAS), f"1 of .* for example: {BIAS} is missing"),
        (without("lm_head.weight"), "lm_head.weight is missing"),
        (WEIGHTS | {GATE: torch.zeros(64, 32)}, f"{GATE} is unknown"),
        (WEIGHTS | {BIAS: torch.zeros(63)}, rf"{BIAS} has the shape \[63\] instead of \[64\]"),
    ],
    ids=["missing", "no output head", "unknown", "wrong shape"],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, weights: Weights, message: str) -> None:
    write_checkpoint(tmp_path, weights)
    with pytest.raises(UnsupportedModelError, match=message) as error:
        load(tmp_path, torch.float32, DEVICE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"architectures": ["PhariaForEmbedding"]},
            r"architectures \['PhariaForEmbedding'\] are not supported",
        ),
        ({"mlp_bias": False}, "attention_bias and mlp_bias differ"),
        ({"hidden_act": "tan"}, "hidden_act tan"),
        ({"num_key_value_heads": 3}, "3 key heads do not suit 4 heads"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"max_position_embeddings": "8k"}, "max_position_embeddings is 8k"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
    ],
    ids=str,
)
def test_options_that_are_not_supported_are_named(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    write_checkpoint(tmp_path, WEIGHTS, **overrides)
    with pytest.raises(UnsupportedModelError, match=message):
        load(tmp_path, torch.float32, DEVICE)


def test_the_shipped_chat_template_writes_the_documented_prompt(checkpoint: Path) -> None:
    """The expected text is the one in Aleph Alpha's documentation of the Pharia 1 models."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "When was Rome founded?"},
    ]
    template = Path("configs/chat_templates/pharia-1.jinja").read_text()
    prompt = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    assert prompt == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\nYou are a helpful assistant.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\nWhen was Rome founded?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n"
    )

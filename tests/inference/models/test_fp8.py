"""Checkpoints with FP8 weights: how they are read, loaded and computed, and which are refused.

On a GPU (TEST_DEVICE=cuda), `torch._scaled_mm` and the Triton kernels compute. On the CPU, torch has
`_scaled_mm` too, for scales per tensor and per row. The references run in float32 on the CPU.
"""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference.interface.errors import SourceError
from inference.interface.quantization import read_quantization
from inference.models import causal_lm
from inference.models.causal_lm import CausalLM
from inference.models.errors import UnsupportedModelError
from inference.models.fp8 import loading
from inference.models.fp8.linear import Fp8Linear, ScaleNames
from inference.models.fp8.operations import TORCH, Operations
from tests.inference.conftest import build_driver, request
from tests.inference.models.fp8_checkpoint import (
    CPU,
    FINE_GRAINED,
    LAYOUTS,
    STATIC,
    TOKEN,
    Checkpoint,
    compressed_tensors,
    make_checkpoint,
    round_input,
)

DEVICE = torch.get_default_device()
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
"""In which the other parts of the model compute."""
IS_EXACT = DEVICE.type == "cpu"
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2}
"""Of one layer, relative to its largest output. Tensor cores add FP8 products with few bits."""

CASES = [(name, architecture) for name in LAYOUTS for architecture in ("llama", "qwen2", "qwen3")]
FP8_DYNAMIC = LAYOUTS["FP8-dynamic"]


@pytest.fixture(autouse=True)
def _any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the CPU load FP8 weights."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(loading, "check_device", lambda device: None)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Checkpoint]:
    made: dict[tuple[str, str], Checkpoint] = {}

    def get(name: str, architecture: str) -> Checkpoint:
        if (name, architecture) not in made:
            with torch.inference_mode():
                directory = tmp_path_factory.mktemp("checkpoint")
                made[name, architecture] = make_checkpoint(directory, LAYOUTS[name], architecture)
        return made[name, architecture]

    return get


def load(checkpoint: Checkpoint, dtype: torch.dtype | None = DTYPE) -> CausalLM:
    return causal_lm.load(checkpoint.directory, dtype, DEVICE)


def fp8_layers(model: CausalLM) -> dict[str, Fp8Linear]:
    return {name: module for name, module in model._model.named_modules() if isinstance(module, Fp8Linear)}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """On the CPU, the same on all devices."""
    return torch.randn(*shape, generator=torch.Generator(CPU).manual_seed(seed), device=CPU)


def operations() -> dict[str, Operations]:
    if DEVICE.type == "cpu":
        return {"torch": TORCH}  # tests/inference/backends/cuda/test_fp8.py interprets the kernels
    from inference.backends.cuda.fp8 import TRITON

    return {"torch": TORCH, "triton": TRITON}


# Reading


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_scheme_is_read_from_each_published_layout(name: str) -> None:
    layout = LAYOUTS[name]
    quantization = read_quantization({"quantization_config": layout.config})
    assert quantization is not None
    scheme = quantization.scheme("model.layers.1.mlp.down_proj")
    assert scheme is not None
    assert (scheme.weights, scheme.activations) == (layout.weights, layout.inputs)
    assert quantization.scheme("lm_head") is None


def test_ignored_layers_are_names_or_patterns() -> None:
    ignore = ["lm_head", "re:.*self_attn.*", "model.layers.1.mlp.up_proj"]
    config = {"quantization_config": compressed_tensors({"strategy": "channel"}, TOKEN, ignore=ignore)}
    quantization = read_quantization(config)
    assert quantization is not None
    names = (
        "layers.0.self_attn.q_proj",
        "layers.1.mlp.up_proj",
        "layers.11.mlp.up_proj",
        "layers.0.mlp.up_proj",
    )
    schemes = [quantization.scheme(f"model.{name}") is not None for name in names]
    assert schemes == [False, False, True, True]
    fields = {**FINE_GRAINED, "modules_to_not_convert": ["lm_head", "model.layers.1", "gate_proj"]}
    quantization = read_quantization({"quantization_config": fields})
    assert quantization is not None
    names = (
        "layers.1.mlp.up_proj",
        "layers.2.mlp.gate_proj",
        "layers.11.mlp.up_proj",
        "layers.2.mlp.up_proj",
    )
    schemes = [quantization.scheme(f"model.{name}") is not None for name in names]
    assert schemes == [False, False, True, True]


def test_groups_of_names_decide_before_the_group_of_all_linear_layers() -> None:
    config = compressed_tensors({"strategy": "channel"}, TOKEN)
    static = compressed_tensors({"strategy": "tensor"}, STATIC)["config_groups"]["group_0"]
    config["config_groups"]["group_1"] = {**static, "targets": ["re:.*down_proj$"]}
    quantization = read_quantization({"quantization_config": config})
    assert quantization is not None
    down, up = (quantization.scheme(f"model.layers.0.mlp.{name}_proj") for name in ("down", "up"))
    assert down is not None
    assert (down.weights, down.activations) == ("tensor", "tensor")
    assert up is not None
    assert (up.weights, up.activations) == ("channel", "token")


# Loading


@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_every_layer_has_the_weight_of_the_checkpoint(
    checkpoints: Callable[[str, str], Checkpoint], name: str, architecture: str
) -> None:
    checkpoint = checkpoints(name, architecture)
    model = load(checkpoint, dtype=None)
    assert model.dtype == torch.bfloat16
    layers = fp8_layers(model)
    assert len(layers) == 14
    for layer, module in layers.items():
        assert module.weight.dtype == torch.float8_e4m3fn
        assert module.weight.device.type == DEVICE.type
        expected = checkpoint.reference.get_submodule(layer).weight
        assert torch.equal(module.dequantize().to(CPU), expected), layer
    stored = {key: tensor for key, tensor in checkpoint.tensors.items() if "_scale" not in key}
    found = {key: tensor.to(CPU) for key, tensor in model._model.state_dict().items() if "_scale" not in key}
    assert found.keys() == stored.keys()
    for key, tensor in stored.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key].float(), tensor.float()), key
    assert {shape.dtype for shape in model.layer_shapes} == {torch.bfloat16}


def test_the_class_is_that_of_transformers(checkpoints: Callable[[str, str], Checkpoint]) -> None:
    checkpoint = checkpoints("FP8", "llama")
    assert type(load(checkpoint)._model) is type(checkpoint.reference)


def test_the_dtype_is_bf16_if_the_configuration_has_none(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, FP8_DYNAMIC)
    checkpoint.rewrite(dtype=None)
    assert load(checkpoint, dtype=None).dtype == torch.bfloat16


def test_a_tied_output_layer_is_not_quantized(tmp_path: Path) -> None:
    config = {**FP8_DYNAMIC.config, "ignore": []}
    layout = replace(FP8_DYNAMIC, config=config)
    checkpoint = make_checkpoint(tmp_path, layout, tie_word_embeddings=True)
    model = load(checkpoint, dtype=None)
    assert len(fp8_layers(model)) == 14
    expected = checkpoint.tensors["model.embed_tokens.weight"]
    assert torch.equal(model._model.lm_head.weight.to(CPU), expected)


def test_the_digest_depends_on_each_weight_and_scale(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, LAYOUTS["FP8"])
    digests = {load(checkpoint).digest(), load(checkpoint).digest()}
    assert len(digests) == 1
    name = "model.layers.1.mlp.up_proj"
    for key in (f"{name}.weight", f"{name}.weight_scale", f"{name}.input_scale"):
        changed = {**checkpoint.tensors, key: checkpoint.tensors[key].clone()}
        changed[key].view(torch.uint8).view(-1)[-1] ^= 1
        checkpoint.rewrite(changed)
        digests.add(load(checkpoint).digest())
    assert len(digests) == 4


def test_the_digest_does_not_depend_on_the_dtype_of_the_other_tensors(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, LAYOUTS["FP8"])
    assert load(checkpoint, torch.float32).digest() == load(checkpoint, torch.bfloat16).digest()


def test_scales_of_a_kv_cache_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    layout = replace(FP8_DYNAMIC, config={**FP8_DYNAMIC.config, "kv_cache_scheme": scheme})
    checkpoint = make_checkpoint(tmp_path, layout)
    scales = {
        f"model.layers.{layer}.self_attn.{name}_scale": torch.ones(1, device=CPU)
        for layer in range(2)
        for name in "kv"
    }
    checkpoint.rewrite({**checkpoint.tensors, **scales})
    with caplog.at_level(logging.INFO, "tiller.worker"):
        load(checkpoint)
    assert "scales for a KV cache in FP8; they are not used" in caplog.text


# Computing


@pytest.mark.parametrize(("name", "architecture"), CASES)
def test_a_layer_computes_as_the_dequantized_one(
    checkpoints: Callable[[str, str], Checkpoint], name: str, architecture: str
) -> None:
    """Its input is rounded to FP8 as the layout says."""
    checkpoint = checkpoints(name, architecture)
    layers = fp8_layers(load(checkpoint))
    for layer in ("self_attn.q_proj", "mlp.down_proj"):
        module = layers[f"model.layers.1.{layer}"]
        scale = checkpoint.tensors.get(f"model.layers.1.{layer}.{checkpoint.layout.input_scale}")
        linear = checkpoint.reference.get_submodule(f"model.layers.1.{layer}")
        for count in (1, 7, 64, 200):
            x = (3 * normal(count, module.in_features)).to(DTYPE)
            if count > 1:
                x[1], x[2, 5] = 0, 100.0
            rounded = round_input(x, checkpoint.layout.inputs, scale)
            expected = nn.functional.linear(rounded, linear.weight, linear.bias)
            check_product(module, x, expected, f"{name}, {layer}, {count} tokens")


def check_product(module: Fp8Linear, x: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    for kind, used in operations().items():
        module.operations = used
        actual = module(x.to(DEVICE))
        assert actual.dtype == x.dtype
        assert actual.shape == expected.shape
        errors = (actual.to(CPU).float() - expected).abs().amax(-1) / expected.abs().max()
        worst = int(errors.argmax())
        assert float(errors.max()) < ROUNDING[x.dtype], (
            f"{what}, {kind}: the largest error is {float(errors.max()):.2e} of the largest output, at token "
            f"{worst}: {actual[worst, :4].tolist()} instead of {expected[worst, :4].tolist()}"
        )


@pytest.mark.parametrize("shape", [(48, 80), (128, 128), (4096, 1024), (1024, 4096)])
@pytest.mark.parametrize("name", ["FP8-dynamic", "FP8", "tensor-token", "channel-static", "fine-grained"])
def test_layers_of_other_sizes_compute(name: str, shape: tuple[int, int]) -> None:
    """From the smallest that `torch._scaled_mm` takes to real ones, also with a single number as scales."""
    quantization = read_quantization({"quantization_config": LAYOUTS[name].config})
    assert quantization is not None
    scheme = quantization.scheme("model.layers.0.mlp.up_proj")
    assert scheme is not None
    rows, columns = shape
    with torch.device(CPU):
        module = Fp8Linear(nn.Linear(columns, rows, bias=False, dtype=DTYPE), scheme, ScaleNames())
    module.weight.copy_(normal(rows, columns, seed=1).to(torch.float8_e4m3fn))
    module.stored_scales.copy_(
        1 + normal(module.stored_scales.numel()).view_as(module.stored_scales).square()
    )
    input_scale = torch.tensor([0.02], device=CPU)
    if scheme.activations == "tensor":
        module.input_scale.copy_(input_scale)
    expected_weight = module.dequantize()
    module = module.to(DEVICE)
    module.prepare()
    for count in (1, 3, 130):
        x = normal(count, columns).to(DTYPE)
        expected = round_input(x, LAYOUTS[name].inputs, input_scale) @ expected_weight.T
        check_product(module, x, expected, f"{name}, {rows} x {columns}, {count} tokens")


@pytest.mark.parametrize("name", LAYOUTS)
@torch.inference_mode(mode=False)
def test_the_derivative_of_a_layer_is_that_of_the_dequantized_one(name: str, tmp_path: Path) -> None:
    model = load(make_checkpoint(tmp_path, LAYOUTS[name], "qwen3"))
    layer = next(module for module in model._model.modules() if isinstance(module, Fp8Linear))
    x = normal(5, layer.in_features).to(DTYPE).requires_grad_()
    slopes = normal(5, layer.out_features, seed=1).to(DTYPE)
    output = layer(x)
    with torch.inference_mode():
        assert torch.equal(output, layer(x))
    [gradient] = torch.autograd.grad(output, x, slopes)
    torch.testing.assert_close(gradient, slopes @ layer.dequantize().to(DTYPE))


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_model_computes_as_the_dequantized_one(name: str, tmp_path: Path) -> None:
    """Numbers that differ in the last bits may round to different FP8 numbers, so some texts differ more."""
    checkpoint = make_checkpoint(tmp_path, LAYOUTS[name], "qwen3")
    token_ids = torch.arange(3, 75, device=CPU).view(24, 3)
    plain = checkpoint.reference(token_ids).logits
    expected = checkpoint.round_inputs()(token_ids).logits
    model = load(checkpoint)
    actual = torch.stack([model.reference_logits(text.to(DEVICE)).to(CPU) for text in token_ids])
    error, rounding = distance(actual, expected), distance(plain, expected)
    assert error < (1e-4 if IS_EXACT else 0.25), f"{error:.2e}; rounding inputs: {rounding:.2e}"
    if IS_EXACT:
        assert rounding > 100 * error  # the test would notice if inputs were not rounded


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The median over tokens of the error, relative to the spread of the logits."""
    return float(((actual - expected).square().mean(-1).sqrt() / expected.std(-1)).median())


@pytest.mark.parametrize("name", ["FP8-dynamic", "FP8", "fine-grained"])
def test_an_engine_generates_what_the_dequantized_model_would(name: str, tmp_path: Path) -> None:
    """Each token has a logit close to the highest one of the reference, which reads the same tokens."""
    checkpoint = make_checkpoint(tmp_path, LAYOUTS[name], "qwen3")
    driver = build_driver(load(checkpoint)._model)
    prompts = [list(range(first, first + 12 + first)) for first in range(3, 9)]
    requests = [request(f"{index}", prompt, max_tokens=12) for index, prompt in enumerate(prompts)]
    results = driver.run(*requests)
    reference = checkpoint.round_inputs()
    for index, prompt in enumerate(prompts):
        tokens = results[f"{index}", 0].token_ids
        assert tokens
        read = torch.tensor([[*prompt, *tokens]], device=CPU)
        logits = reference(read).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(tokens, device=CPU)[:, None])[:, 0]
        behind = (logits.amax(-1) - chosen) / logits.std(-1)
        assert float(behind.max()) < 0.5, f"request {index}: {behind.tolist()}"
        if IS_EXACT:
            assert float(behind.median()) == 0


# Refusals

INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
FP4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
CHANNEL = {"strategy": "channel"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "gptq", "bits": 4}, "gptq"),
    ({"quant_method": "awq", "bits": 4}, "awq"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
    ({"load_in_8bit": True}, "bitsandbytes"),
    ({"quant_method": "hqq"}, "hqq"),
    ({"quant_method": "mxfp4"}, "mxfp4"),
    ({"quant_method": "modelopt"}, "modelopt"),
    ({"bits": 3}, "an unknown method"),
    (
        compressed_tensors(INT4, None),
        "compressed-tensors (group_0: float-quantized) with 4-bit int weights",
    ),
    (compressed_tensors(FP4, TOKEN), "4-bit float weights"),
    (compressed_tensors({**CHANNEL, "type": "int"}, {**TOKEN, "type": "int"}), "8-bit int weights"),
    (compressed_tensors(CHANNEL, None), "FP8 weights and unquantized activations"),
    (compressed_tensors(CHANNEL, {**TOKEN, "type": "int"}), "FP8 weights and 8-bit int activations"),
    (
        compressed_tensors(CHANNEL, {"dynamic": True, "strategy": "tensor"}),
        "scales of weights per channel and dynamic scales of activations per tensor",
    ),
    (
        compressed_tensors({"strategy": "block", "block_structure": [64, 64]}, TOKEN),
        "scales of weights per block [64, 64] and dynamic scales of activations per token",
    ),
    (compressed_tensors(CHANNEL, TOKEN, config_groups={}), "compressed-tensors without config_groups"),
    (compressed_tensors(CHANNEL, TOKEN, transform_config={"a": 1}), "transform_config"),
    (
        compressed_tensors(CHANNEL, TOKEN, sparsity_config={"format": "sparse-24"}),
        "sparse weights (sparse-24)",
    ),
    (compressed_tensors(CHANNEL, TOKEN, ignore=["re:("]), "compressed-tensors with the pattern '('"),
    ({**FINE_GRAINED, "weight_block_size": [1, 32]}, "fp8 with weight_block_size [1, 32]"),
    ({**FINE_GRAINED, "activation_scheme": "static"}, "fp8 with activation_scheme static and blocks"),
    ({**FINE_GRAINED, "scale_fmt": "ue8m0"}, "fp8 with scale_fmt ue8m0"),
    ({**FINE_GRAINED, "fmt": "e5m2"}, "fp8 with fmt e5m2"),
]


@pytest.mark.parametrize(("config", "named"), REFUSED)
def test_other_quantizations_are_refused_by_name(config: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as refusal:
        read_quantization({"quantization_config": config})
    text = str(refusal.value)
    assert text.startswith("its weights are quantized with ")
    assert f"{named} (config.json), which is not supported; use a checkpoint in bf16, in FP8" in text
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": config}))
    with pytest.raises(UnsupportedModelError) as unsupported:
        causal_lm.load(tmp_path, None, DEVICE)
    assert str(unsupported.value) == f"{tmp_path}: {text}"


def test_a_cpu_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    checkpoint = make_checkpoint(tmp_path, FP8_DYNAMIC)
    with pytest.raises(UnsupportedModelError, match=r"^FP8 weights need a GPU .*: integer$"):
        causal_lm.load(checkpoint.directory, None, CPU)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)])
def test_older_gpus_refuse(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if capability >= (8, 9):
        loading.check_device(torch.device("cuda", 0))
        return
    with pytest.raises(UnsupportedModelError) as refusal:
        loading.check_device(torch.device("cuda", 0))
    assert f"but this one has {capability[0]}.{capability[1]}; use the checkpoint in bf16" in str(
        refusal.value
    )


def refusal(checkpoint: Checkpoint) -> str:
    with pytest.raises(UnsupportedModelError) as refused:
        load(checkpoint)
    return str(refused.value)


def test_mixtures_of_experts_are_refused(tmp_path: Path) -> None:
    """Most are found in config.json, before anything is downloaded. The others are found in the model."""
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    checkpoint = make_checkpoint(tmp_path, FP8_DYNAMIC, "qwen3_moe", **sizes)
    reason = "not supported for a mixture of experts; use a checkpoint in bf16"
    assert f"quantized with compressed-tensors (config.json), which is {reason}" in refusal(checkpoint)
    quantization = read_quantization({"quantization_config": FP8_DYNAMIC.config})
    assert quantization is not None
    with pytest.raises(UnsupportedModelError, match=f"^{tmp_path}: FP8 weights are {reason}$"):
        loading.model_class(tmp_path, quantization)


def test_sizes_that_tensor_cores_cannot_multiply_are_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, FP8_DYNAMIC, intermediate_size=312)
    assert "multiples of 16, but model.layers.0.mlp.gate_proj has 312" in refusal(checkpoint)


def test_a_configuration_that_matches_no_layer_is_refused(tmp_path: Path) -> None:
    layout = replace(FP8_DYNAMIC, config={**FP8_DYNAMIC.config, "ignore": ["re:.*"]})
    assert "matches no linear layer of the model" in refusal(make_checkpoint(tmp_path, layout))


NAME = "model.layers.1.mlp.up_proj"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return make_checkpoint(tmp_path, LAYOUTS["FP8"])


@pytest.mark.parametrize("key", [f"{NAME}.weight", f"{NAME}.weight_scale", f"{NAME}.input_scale"])
def test_a_missing_tensor_is_named(checkpoint: Checkpoint, key: str) -> None:
    checkpoint.rewrite({name: tensor for name, tensor in checkpoint.tensors.items() if name != key})
    assert f"1 of the model's tensors are missing or do not fit, for example: {key} is missing" in refusal(
        checkpoint
    )


def test_tensors_of_other_shapes_are_named(checkpoint: Checkpoint) -> None:
    wrong = torch.ones(320, 1, device=CPU)
    checkpoint.rewrite({**checkpoint.tensors, f"{NAME}.weight_scale": wrong})
    assert f"{NAME}.weight_scale has the shape [320, 1] instead of [1]" in refusal(checkpoint)
    wrong = torch.ones(320, 64, device=CPU).to(torch.float8_e4m3fn)
    checkpoint.rewrite({**checkpoint.tensors, f"{NAME}.weight": wrong})
    assert f"{NAME}.weight has the shape [320, 64] instead of [320, 192]" in refusal(checkpoint)


def test_a_quantized_layer_that_the_configuration_ignores_is_named(checkpoint: Checkpoint) -> None:
    config = {**checkpoint.layout.config, "ignore": ["lm_head", NAME]}
    checkpoint.rewrite(quantization_config=config)
    assert f"{NAME}.input_scale belongs to no layer with FP8 weights" in refusal(checkpoint)


def test_another_kind_of_8_bit_floats_is_refused(checkpoint: Checkpoint) -> None:
    wrong = checkpoint.tensors[f"{NAME}.weight"].float().to(torch.float8_e5m2)
    checkpoint.rewrite({**checkpoint.tensors, f"{NAME}.weight": wrong})
    assert f"{checkpoint.directory}: {NAME}.weight is in e5m2; of FP8, only e4m3" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("weight_scale", float("nan"), "a scale is not a positive number"),
        ("weight_scale", -1.0, "a scale is not a positive number"),
        ("input_scale", float("inf"), "a scale is not a positive number"),
        ("input_scale", 0.0, "the scale of the input is 0"),
    ],
)
def test_scales_that_are_no_numbers_are_refused(
    checkpoint: Checkpoint, name: str, value: float, reason: str
) -> None:
    broken = torch.full((1,), value, device=CPU)
    checkpoint.rewrite({**checkpoint.tensors, f"{NAME}.{name}": broken})
    assert refusal(checkpoint) == f"{checkpoint.directory}: {NAME}: {reason}"

"""Tiny checkpoints with FP8 weights, in the layouts that are published on the Hugging Face hub.

The helper shares no code with the engine. It quantizes as the publishers' tools do: a scale is the largest
absolute number of its part of the weight, divided by 448. `Checkpoint.reference` is the same model with the
dequantized weights, in float32, as transformers computes it. `round_inputs` makes it round its inputs too.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody uses
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

CPU = torch.device("cpu")
VOCAB_SIZE = 199
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 192,  # not a multiple of 128
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}

FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True, "group_size": None, "actorder": None}
LISTED = {"block_structure": None, "observer": "minmax", "observer_kwargs": {}}


def compressed_tensors(
    weights: dict[str, Any], inputs: dict[str, Any] | None, **others: Any
) -> dict[str, Any]:
    """The quantization_config that llm-compressor writes."""
    group = {
        "format": "float-quantized",
        "input_activations": inputs and {**FLOAT8, **LISTED, **inputs},
        "output_activations": None,
        "targets": ["Linear"],
        "weights": {**FLOAT8, **LISTED, "dynamic": False, **weights},
    }
    return {
        "config_groups": {"group_0": group},
        "format": "float-quantized",
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.12.2",
        **others,
    }


TOKEN = {"dynamic": True, "strategy": "token", "observer": None}
STATIC = {"dynamic": False, "strategy": "tensor"}
FINE_GRAINED = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "modules_to_not_convert": ["lm_head", "model.layers.0.input_layernorm", "model.layers.1.input_layernorm"],
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


@dataclass(frozen=True)
class Layout:
    """What a publisher writes."""

    config: dict[str, Any]
    weights: str  # tensor, channel or block
    inputs: str  # token, tensor or group
    weight_scale: str = "weight_scale"
    input_scale: str = "input_scale"
    scalar: tuple[int, ...] = (1,)
    scale_dtype: torch.dtype = torch.float32


LAYOUTS = {
    "FP8-dynamic": Layout(
        compressed_tensors({"strategy": "channel"}, TOKEN), "channel", "token", scale_dtype=torch.bfloat16
    ),
    "FP8": Layout(compressed_tensors({"strategy": "tensor"}, STATIC), "tensor", "tensor"),
    "tensor-token": Layout(compressed_tensors({"strategy": "tensor"}, TOKEN), "tensor", "token"),
    "channel-static": Layout(compressed_tensors({"strategy": "channel"}, STATIC), "channel", "tensor"),
    "FP8-block": Layout(
        compressed_tensors(
            {"strategy": "block", "block_structure": [128, 128]},
            {"dynamic": True, "strategy": "group", "group_size": 128},
        ),
        "block",
        "group",
    ),
    "fine-grained": Layout(FINE_GRAINED, "block", "group", "weight_scale_inv"),
    "AutoFP8": Layout(
        {"activation_scheme": "static", "ignored_layers": ["lm_head"], "quant_method": "fp8"},
        "tensor",
        "tensor",
        scalar=(),
    ),
    "AutoFP8-dynamic": Layout({"activation_scheme": "dynamic", "quant_method": "fp8"}, "tensor", "token"),
    "Mistral": Layout(
        {
            "activation_scheme": "static",
            "modules_to_not_convert": ["lm_head"],
            "quant_method": "fp8",
            "weight_block_size": None,
        },
        "tensor",
        "tensor",
        "weight_scale_inv",
        "activation_scale",
        (),
    ),
}


@dataclass
class Checkpoint:
    directory: Path
    layout: Layout
    reference: PreTrainedModel
    """float32, on the CPU."""
    tensors: dict[str, torch.Tensor]
    """All that were written."""

    def round_inputs(self) -> PreTrainedModel:
        """Makes `reference` also round the inputs of its layers, as the layout says. Returns it."""
        for name, module in _layers(self.reference).items():
            scale = self.tensors.get(f"{name}.{self.layout.input_scale}")
            module.register_forward_pre_hook(
                lambda _, inputs, scale=scale: (round_input(inputs[0], self.layout.inputs, scale),)
            )
        return self.reference

    def rewrite(self, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> None:
        """Writes the files again, with other tensors or other fields of config.json."""
        self.tensors = self.tensors if tensors is None else tensors
        _write(
            self.directory, self.tensors, json.loads((self.directory / "config.json").read_text()) | config
        )


def make_checkpoint(
    directory: Path,
    layout: Layout,
    architecture: str = "llama",
    dtype: torch.dtype = torch.bfloat16,
    **overrides: Any,
) -> Checkpoint:
    """`dtype`: of all tensors that are not quantized."""
    with torch.device(CPU):
        config = AutoConfig.for_model(architecture, **{**SIZES, **overrides})
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.dim() > 1 else 0.1
            value = parameter.detach().normal_(std=spread) + ("norm" in name)
            parameter.data = value.to(dtype).float()
            tensors[name] = parameter.data.to(dtype)
        for name, module in _layers(model).items():
            tensors |= _quantize(name, module, layout)
    directory.mkdir(parents=True, exist_ok=True)
    fields = json.loads(config.to_json_string(use_diff=False))
    fields |= {"dtype": str(dtype).removeprefix("torch."), "quantization_config": layout.config}
    fields["architectures"] = [type(model).__name__]
    _write(directory, tensors, fields)
    return Checkpoint(directory, layout, model.eval(), tensors)


def _layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }


def _write(directory: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    (directory / "config.json").write_text(json.dumps(config))
    # PyTorch writes 8-bit floats as F8_E4M3. Each tensor is a copy, so that none shares its memory.
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, directory / "model.safetensors")


def _quantize(name: str, module: nn.Linear, layout: Layout) -> dict[str, torch.Tensor]:
    """The tensors of the layer. The layer then has the dequantized weight."""
    weight = module.weight.data
    rows, columns = weight.shape
    match layout.weights:
        case "tensor":
            scale = (weight.abs().max() / 448).reshape(layout.scalar)
            spread = scale.reshape(1, 1)
        case "channel":
            scale = (weight.abs().amax(1, keepdim=True) / 448).to(layout.scale_dtype)
            spread = scale.float()
        case "block":
            padded = F.pad(weight, (0, -columns % 128, 0, -rows % 128))
            tiles = padded.unflatten(1, (-1, 128)).unflatten(0, (-1, 128))  # [rows, 128, columns, 128]
            scale = tiles.abs().amax((1, 3)) / 448
            spread = scale.kron(torch.ones(128, 128))[:rows, :columns]
    numbers = (weight / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
    module.weight.data = numbers.float() * spread
    tensors = {f"{name}.weight": numbers, f"{name}.{layout.weight_scale}": scale.to(layout.scale_dtype)}
    if layout.inputs == "tensor":
        # Of a calibration: some inputs are larger than 448 times this scale.
        tensors[f"{name}.{layout.input_scale}"] = torch.full(layout.scalar, 16.0 / 448)
    return tensors


def round_input(x: torch.Tensor, kind: str, scale: torch.Tensor | None) -> torch.Tensor:
    """Rounds [..., size] as a layer with FP8 weights does, and returns float32."""
    x = x.float()
    if kind == "group":
        size = x.shape[-1]
        groups = F.pad(x, (0, -size % 128)).unflatten(-1, (-1, 128))
        return round_input(groups, "token", None).flatten(-2)[..., :size]
    if kind == "token":
        scale = (x.abs().amax(-1, keepdim=True) * (1 / 448)).clamp_min(1e-12)  # as torch divides on CUDA
    assert scale is not None
    scale = scale.to(x.device)
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale

"""Pharia 1 of Aleph Alpha (model type pharia-v1), which transformers does not know.

transformers' Starcoder2 has the same parts: LayerNorm, biases, grouped key heads, and an MLP of two layers.
Only the rotary embedding differs. So Pharia's weights are loaded into Starcoder2, and the rows of q and k
change their order. The code in the checkpoint does not run.

Sources: the checkpoint's modelling code, as a public fork of vLLM (almaslof/vllm) shows it, SiLLM's
`models/pharia1.py`, and Aleph Alpha's library `scaling` (`RotaryEmbeddingComplex`, and GELU without tanh).
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Starcoder2Config
from transformers.activations import ACT2FN

from inference.interface.config import Rotary
from inference.models.errors import UnsupportedModelError
from inference.models.shards import local_part

MODEL_TYPE = "pharia-v1"
_ARCHITECTURE = "PhariaForCausalLM"

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
_DEFAULTS: dict[str, Any] = {
    "architectures": [_ARCHITECTURE],
    "attention_bias": True,
    "hidden_act": "gelu",
    "max_position_embeddings": 8192,
    "mlp_bias": True,
    "rope_parameters": {},
    "rope_scaling": {},
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": False,
}
"""For fields that config.json does not have. Those of the checkpoint's own configuration class."""
_NORM_EPSILON = 1e-5  # torch's default, which the checkpoint's own code uses

_RENAMED = {"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}


def loading_options(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments with which `from_pretrained` loads Pharia's weights. `config`: its config.json.

    Raises UnsupportedModelError if it is not the language model, or has options that Starcoder2 lacks.
    """
    config = _DEFAULTS | {name: value for name, value in config.items() if value is not None}
    _check_sizes(config)
    _check_options(config)
    dtype = config.get("dtype") or config.get("torch_dtype")
    starcoder = Starcoder2Config(
        **{name: config[name] for name in (*_SIZES, "hidden_act", "tie_word_embeddings")},
        **{name: config.get(name) for name in ("bos_token_id", "eos_token_id")},
        **({"dtype": dtype} if dtype else {}),
        norm_epsilon=_NORM_EPSILON,
        use_bias=config["attention_bias"],
        rope_parameters=_rope_parameters(config),
    )
    return {
        "config": starcoder,
        "key_mapping": {name.replace(".", r"\."): new for name, new in _RENAMED.items()},
    }


def _check_sizes(config: dict[str, Any]) -> None:
    for name in _SIZES:
        if not isinstance(config.get(name), int) or config[name] < 1:
            raise UnsupportedModelError(f"config.json: {name} is {config.get(name)}, but must be a size")
    hidden_size = config["hidden_size"]
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if hidden_size % (2 * heads) or heads % key_heads:
        raise UnsupportedModelError(
            f"config.json: hidden_size {hidden_size} and {key_heads} key heads do not suit {heads} heads"
        )


def _check_options(config: dict[str, Any]) -> None:
    if _ARCHITECTURE not in config["architectures"]:
        raise UnsupportedModelError(
            f"config.json: the architectures {config['architectures']} are not supported; "
            f"of {MODEL_TYPE} models, only {_ARCHITECTURE} is"
        )
    if config["attention_bias"] != config["mlp_bias"]:
        raise UnsupportedModelError("config.json: attention_bias and mlp_bias differ, which is not supported")
    if config["hidden_act"] not in list(ACT2FN):
        raise UnsupportedModelError(f"config.json: hidden_act {config['hidden_act']} is not known")
    for name, kind in [("rope_theta", int | float), ("rope_scaling", dict), ("rope_parameters", dict)]:
        if not isinstance(config[name], kind):
            raise UnsupportedModelError(f"config.json: {name} is {config[name]!r}, which cannot be read")


def _rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """In the layout of transformers 5. Older versions write `rope_theta` and `rope_scaling`."""
    parameters = {"rope_theta": config["rope_theta"], **config["rope_scaling"], **config["rope_parameters"]}
    return {"rope_type": parameters.pop("type", "default"), **parameters}


def restore_names(text: str) -> str:
    """Replaces the names of the loaded model's parameters by those in the checkpoint."""
    for original, new in _RENAMED.items():
        text = text.replace(new, original)
    return text


@torch.no_grad()
def set_rotary(model: PreTrainedModel, rotary: Rotary) -> None:
    """Makes the loaded model rotate the pairs of dimensions that the weights are made for.

    Starcoder2 rotates dimension i of a head with dimension i + n/2. If the weights are interleaved, dimension
    2i is rotated with 2i + 1. The scores of attention do not change when both q and k change the order of
    their dimensions. So the rows of the layers that compute them change their order: even rows first.
    """
    if rotary == "half":
        return
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            _sort_rows(projection, layer.self_attn.head_dim)


def _sort_rows(projection: nn.Linear, head_dim: int) -> None:
    """Copies one matrix at a time, so that this needs no memory for a second model."""
    for parameter in map(local_part, projection.parameters()):  # a part has whole heads
        rows = torch.arange(len(parameter), device=parameter.device)
        order = rows.view(-1, head_dim // 2, 2).transpose(1, 2).flatten()  # per head: 0, 2, ..., 1, 3, ...
        parameter.copy_(parameter[order])

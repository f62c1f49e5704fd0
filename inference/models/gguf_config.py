"""Reads from a GGUF file what transformers' conversion leaves out of the configuration.

The names of the metadata are those of llama.cpp (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from typing import Any

import torch
from gguf import GGUFReader, dequantize
from transformers import modeling_rope_utils

from inference.interface.errors import SourceError

# How llama.cpp scales the queries of these models, by their number of layers. The file does not say it.
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}

_PARTLY_ROTATED = ("phi3", "stablelm", "nemotron")


def value(reader: GGUFReader, key: str) -> Any:
    """The metadata with this key, or None."""
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def complete(config: Any, reader: GGUFReader, place: str) -> None:
    """Adds to the configuration of a converted model. `place`: what a message calls the file.

    Raises SourceError if the rotary embedding of the file cannot be expressed.
    """
    architecture = value(reader, "general.architecture")
    if config.num_hidden_layers == _LAYERS_OF_27B.get(architecture):
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    if architecture in _PARTLY_ROTATED and (rotated := value(reader, f"{architecture}.rope.dimension_count")):
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        config.rope_parameters["partial_rotary_factor"] = rotated / head
    if rope := _scaling(config, reader, architecture, place):
        _set_scaling(config, rope)


def _set_scaling(config: Any, rope: dict[str, Any]) -> None:
    """Gemma 3 scales only the layers with full attention."""
    parameters = config.rope_parameters
    parameters.get("full_attention", parameters).update(rope)
    if rope["rope_type"] == "longrope":
        config.original_max_position_embeddings = rope["original_max_position_embeddings"]


def _scaling(config: Any, reader: GGUFReader, architecture: str, place: str) -> dict[str, Any] | None:
    """The parameters of the scaled rotary embedding in the terms of transformers. None: it is not scaled."""
    prefix = f"{architecture}.rope.scaling"
    kind, factor = value(reader, f"{prefix}.type"), value(reader, f"{prefix}.factor")
    original = value(reader, f"{prefix}.original_context_length")
    tensors = {tensor.name: tensor for tensor in reader.tensors if tensor.name.startswith("rope_")}
    if "rope_factors_long.weight" in tensors:
        factors = {
            f"{length}_factor": _numbers(tensors[f"rope_factors_{length}.weight"]).tolist()
            for length in ("long", "short")
        }
        return {"rope_type": "longrope", **factors, "original_max_position_embeddings": original}
    if "rope_freqs.weight" in tensors:
        return _llama3(config, _numbers(tensors["rope_freqs.weight"]), place)
    if kind == "linear" and factor:
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and factor:
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    if kind in (None, "none", "linear", "yarn"):
        return None
    raise SourceError(f"{place}: its rotary embedding of type {kind!r} is not supported")


def _llama3(config: Any, divisors: torch.Tensor, place: str) -> dict[str, Any]:
    """Llama 3.1's scaling. The file has its result: what each frequency is divided by.

    All models with it have these parameters, except for `factor`. Raises SourceError if they give another
    result.
    """
    rope = {
        **config.rope_parameters,
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    unscaled, config.rope_parameters = config.rope_parameters, rope
    scaled, _ = modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    config.rope_parameters = unscaled
    exponents = torch.arange(0, 2 * len(divisors), 2).float() / (2 * len(divisors))
    given = 1 / (rope["rope_theta"] ** exponents * divisors)
    if given.shape != scaled.shape or not torch.allclose(given, scaled, rtol=1e-3):
        raise SourceError(f"{place}: its rotary embedding (rope_freqs.weight) is not supported")
    return rope


def _numbers(tensor: Any) -> torch.Tensor:
    return torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).flatten()

"""Rotary position embeddings: the context that they promise, and angles that do not depend on the batch."""

import logging
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, modeling_rope_utils

from inference.models.errors import UnsupportedModelError

_log = logging.getLogger("tiller.worker")

_LONGROPE = "longrope"
_UNCHANGING = "default"  # transformers changes no frequencies of this type

# transformers chooses their frequencies by the longest sequence of the batch, so one sequence would change
# the output of another.
_BATCH_DEPENDENT = frozenset({"dynamic", _LONGROPE})


def prepare(model: PreTrainedModel, wanted: int | None) -> int | None:
    """Makes each angle depend on nothing but its position. Returns the model's context length in tokens.

    The result None means that the model's configuration has no limit. `wanted`: engine.context_length. It
    chooses between the two sets of frequencies of `longrope`. Raises UnsupportedModelError.
    """
    config = model.config.get_text_config()
    length = _promised_length(config)
    if length is not None:
        length = _longrope_length(config, length, wanted)
    modules = [module for module in model.modules() if hasattr(module, "rope_type")]
    for module in modules:
        _fix(module, length or 0)
    for kind in sorted({rope["rope_type"] for rope in _ropes(config)} & _BATCH_DEPENDENT):
        if not modules:  # the model has code of its own for them
            raise UnsupportedModelError(f"rotary embeddings of type {kind!r} are not supported in this model")
    return length


def _promised_length(config: Any) -> int | None:
    """What the configuration promises, in tokens.

    `yarn` and `linear` promise `factor` times the original length, as in vLLM. If each type of layers has its
    own `linear` (Gemma 3), `max_position_embeddings` is the whole context. With `dynamic`, the frequencies
    change after `max_position_embeddings` positions, so that is the limit.
    """
    longest = getattr(config, "max_position_embeddings", None)
    if longest is None:
        return None
    ropes = _ropes(config)
    scaled = [
        rope
        for rope in ropes
        if rope["rope_type"] == "yarn" or (rope["rope_type"] == "linear" and len(ropes) == 1)
    ]
    lengths = [
        int((rope.get("factor") or 1) * (rope.get("original_max_position_embeddings") or longest))
        for rope in scaled
    ]
    return max([int(longest), *lengths])


def _longrope_length(config: Any, longest: int, wanted: int | None) -> int:
    """`longest`, or the original length unless a longer context is wanted.

    LongRoPE (https://arxiv.org/abs/2402.13753) has short factors for sequences up to the original length, and
    long factors for longer ones. transformers would have to compute a sequence again when it becomes longer.
    So there is one set for all sequences, as in vLLM.
    """
    originals = [_original(rope, longest) for rope in _ropes(config) if rope["rope_type"] == _LONGROPE]
    original = min([longest, *originals])
    if original == longest or (wanted or 0) > original:
        return longest
    if wanted is None:
        _log.info(
            "the model's context length is %d tokens, with the short factors of its longrope; a larger "
            "engine.context_length, up to %d, chooses the long factors for all requests",
            original,
            longest,
        )
    return original


def _fix(module: Any, length: int) -> None:
    """Fixes the frequencies of a rotary module."""
    kinds = module.rope_type
    if isinstance(kinds, str) and kinds in _BATCH_DEPENDENT:
        module.rope_type = _UNCHANGING
        _choose_frequencies(module, kinds, None, length)
    elif isinstance(kinds, dict):
        changing = {layer_type: kind for layer_type, kind in kinds.items() if kind in _BATCH_DEPENDENT}
        module.rope_type = kinds | dict.fromkeys(changing, _UNCHANGING)
        for layer_type, kind in changing.items():
            _choose_frequencies(module, kind, layer_type, length)


def _choose_frequencies(module: Any, kind: str, layer_type: str | None, length: int) -> None:
    """Sets the frequencies of long sequences if there may be any. At first, it has those of short ones."""
    config = module.config
    rope = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    original = _original(rope, config.max_position_embeddings)
    if kind != _LONGROPE or length <= original:
        return
    frequencies = getattr(module, "inv_freq" if layer_type is None else f"{layer_type}_inv_freq")
    compute = modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind]
    long, _ = compute(config, frequencies.device, seq_len=original + 1, layer_type=layer_type)
    frequencies.copy_(long)
    if not _rotates_by(module, long, layer_type):  # Phi-3.5-MoE computes them in its own way
        raise UnsupportedModelError(
            f"engine.context_length: more than {original} tokens are not supported with this model's longrope"
        )


@torch.inference_mode()
def _rotates_by(module: nn.Module, frequencies: torch.Tensor, layer_type: str | None) -> bool:
    """Whether the module rotates position 1 by these angles."""
    options = {} if layer_type is None else {"layer_type": layer_type}
    position = torch.ones(1, 1, dtype=torch.long, device=frequencies.device)
    cos, sin = module(frequencies, position, **options)
    angles = torch.atan2(sin, cos).flatten().sort().values
    return torch.allclose(angles, torch.cat([frequencies, frequencies]).sort().values, atol=1e-3)


def _original(rope: dict[str, Any], longest: int) -> int:
    return int(rope.get("original_max_position_embeddings") or longest)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The parameters of the model's rotary embeddings: one entry, or one for each type of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [value for value in parameters.values() if isinstance(value, dict)]
    ropes = by_layer_type or [parameters]
    return [{"rope_type": "default", **rope} for rope in ropes]

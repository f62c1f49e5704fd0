"""Finds a model's attention layers and decoder blocks, and the shapes of what the layers store."""

import sys
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from inference.compute import attention
from inference.compute.kv_cache import LayerShape
from inference.models.errors import UnsupportedModelError

_RECORDER_NAME = "tiller_recorder"
_WINDOW_MASK = "create_sliding_window_causal_mask"  # the function's name in transformers' models


class _LayerRecorder:
    """Records what each attention layer stores, while one token runs through the model."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self.modules: dict[int, nn.Module] = {}
        self.windows: dict[int, int | None] = {}

    def record(
        self, module: nn.Module, key: torch.Tensor, value: torch.Tensor, arguments: dict[str, Any]
    ) -> None:
        """Raises UnsupportedModelError if the layer has arguments that `paged_attention` does not support."""
        if names := attention.unsupported_arguments(module, arguments):
            raise UnsupportedModelError(
                f"the model's attention needs {', '.join(names)}, which is not supported"
            )
        layer: Any = module.layer_idx
        if layer in self.shapes:
            raise UnsupportedModelError(
                f"the model calls transformers' attention interface more than once in layer {layer}"
            )
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[-1], value.shape[-1], key.dtype)
        self.modules[layer] = module
        self.windows[layer] = arguments.get("sliding_window")


def _record_layer(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - part of the interface
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function that computes nothing. The call passes the _LayerRecorder as `forward_context`.

    transformers' registry of attention functions lives as long as the process. So this function must not hold
    a model, and gets the _LayerRecorder from its arguments.
    """
    recorder = arguments.get("forward_context")
    if not isinstance(recorder, _LayerRecorder):
        raise UnsupportedModelError("the model does not pass its keyword arguments on to its attention")
    recorder.record(module, key, value, arguments)
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None


def examine_layers(model: PreTrainedModel) -> tuple[list[LayerShape], list[nn.Module]]:
    """Runs one token through the model. Returns two lists with one entry per layer.

    The first list has the shapes of the keys and values that the attention layer stores. The second has the
    modules of the attention layers. Raises UnsupportedModelError if a layer does not call transformers'
    attention interface exactly once, if it needs arguments that `paged_attention` does not support, or if
    only the model's own attention mask applies a sliding window.
    """
    AttentionInterface.register(_RECORDER_NAME, _record_layer)
    model.set_attn_implementation(_RECORDER_NAME)
    recorder = _LayerRecorder()
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with torch.inference_mode():
        model(
            input_ids=token,
            position_ids=token,
            use_cache=False,
            logits_to_keep=token[0],
            forward_context=recorder,
        )
    text = model.config.get_text_config()
    layers = range(text.num_hidden_layers)
    if sorted(recorder.shapes) != list(layers):
        raise UnsupportedModelError(
            f"models of type {text.model_type} are not supported: not all of the model's layers use "
            "transformers' attention interface"
        )
    if _has_windows_in_mask_only(model, text, recorder.windows):
        raise UnsupportedModelError(
            "the model applies its sliding windows only in its attention mask, which is not supported"
        )
    return [recorder.shapes[layer] for layer in layers], [recorder.modules[layer] for layer in layers]


def _has_windows_in_mask_only(model: PreTrainedModel, text: Any, windows: dict[int, int | None]) -> bool:
    """Whether some layer has a sliding window that it does not pass on to its attention.

    `windows`: those that the layers pass on. Without `layer_types` in the configuration, all layers of a
    model have the same mask. A window as long as the context has no effect.
    """
    if kinds := getattr(text, "layer_types", None):
        return any(kind == "sliding_attention" and windows[i] is None for i, kind in enumerate(kinds))
    window = getattr(text, "sliding_window", None)
    makes_masks = _WINDOW_MASK in vars(sys.modules[type(model).__module__])
    return (
        bool(window) and window < text.max_position_embeddings and makes_masks and not any(windows.values())
    )


def decoder_blocks(model: PreTrainedModel, attentions: list[nn.Module]) -> list[nn.Module]:
    """The decoder blocks: finds the ModuleList in which module i contains attention layer i."""
    for modules in model.modules():
        if isinstance(modules, nn.ModuleList) and len(modules) == len(attentions):
            pairs = zip(modules, attentions, strict=True)
            if all(attention in block.modules() for block, attention in pairs):
                return list(modules)
    raise UnsupportedModelError("the model has no list of decoder blocks with one attention layer each")

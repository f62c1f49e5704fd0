"""Loads and checks a transformers model, and runs it on a batch. Knows no requests."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from inference.compute import attention
from inference.compute.attention import ForwardContext
from inference.compute.batch import Batch
from inference.compute.kv_cache import LayerShape

# These rope types scale positions by the longest sequence of the batch, so one sequence would change the
# output of another.
_BATCH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


_RECORDER_NAME = "tiller_recorder"

LayerHook = Callable[[torch.Tensor, Batch], None]
"""Is called with a decoder block's output [T, hidden_size] and the batch."""


class UnsupportedModelError(Exception):
    """The model needs something that the engine does not support. The message says what."""


class CausalLM:
    """A causal language model of transformers: its code is unchanged, its attention is `paged_attention`."""

    def __init__(self, model: PreTrainedModel) -> None:
        """`model`: in eval mode, on its device. Raises UnsupportedModelError if the engine cannot run it."""
        self.config = model.config.get_text_config()
        _check_config(model.config)
        self._model = model
        self._own_attention = model.config._attn_implementation
        self.layer_shapes, attentions = _examine_layers(model)
        self.layers = _decoder_blocks(model, attentions)
        """The decoder blocks. The model calls each one, and its attention, with `forward_context`."""
        attention.register()
        model.set_attn_implementation(attention.NAME)

        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.vocab_size = int(self.config.vocab_size)
        self.hidden_size = int(self.config.hidden_size)

    @property
    def context_length(self) -> int | None:
        """The model's own limit in tokens, if its configuration has one."""
        length = getattr(self.config, "max_position_embeddings", None)
        return None if length is None else int(length)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The end tokens in the model's generation config. If it has none, those in the model's config."""
        generation = self._model.generation_config
        ids = getattr(generation, "eos_token_id", None)
        if ids is None:
            ids = getattr(self.config, "eos_token_id", None)
        if ids is None:
            return ()
        return tuple(ids) if isinstance(ids, list) else (int(ids),)

    def forward(self, forward_context: ForwardContext) -> torch.Tensor:
        """The float32 logits [S + P, vocab_size] at the batch's `logit_tokens`."""
        batch = forward_context.batch
        logits: torch.Tensor = self._model(
            input_ids=batch.token_ids[None],
            position_ids=batch.positions[None],
            use_cache=False,
            logits_to_keep=batch.logit_tokens,
            forward_context=forward_context,
        ).logits
        return logits[0].float()

    def hook_layer(self, index: int, act: LayerHook) -> RemovableHandle:
        """Calls `act` with a decoder block's output in every `forward`. `act` may change it in place."""

        def hook(block: nn.Module, args: Any, arguments: dict[str, Any], output: Any) -> None:  # noqa: ARG001
            if "forward_context" in arguments:  # missing when the model runs with its own attention
                hidden = output[0] if isinstance(output, tuple) else output
                act(hidden[0], arguments["forward_context"].batch)

        return self.layers[index].register_forward_hook(hook, with_kwargs=True)

    def reference_logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The float32 logits [T, vocab_size] of one sequence [T], computed with the model's own attention."""
        self._model.set_attn_implementation(self._own_attention)
        logits: torch.Tensor = self._model(input_ids=token_ids[None], use_cache=False).logits
        self._model.set_attn_implementation(attention.NAME)
        return logits[0].float()

    def transform(self, act: Callable[[nn.Module], None]) -> None:
        """Calls `act` with the transformers model, so that it can replace parts of the model in place."""
        act(self._model)

    def digest(self) -> str:
        """A hex digest of the weights' names, shapes, dtypes and values. It is the same on every device."""
        summary = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            summary.update(f"{name} {list(tensor.shape)} {tensor.dtype} {_checksum(tensor)};".encode())
        return summary.hexdigest()


def load(directory: Path, dtype: torch.dtype | None, device: torch.device) -> CausalLM:
    """Loads a directory in the transformers layout. `dtype` None keeps the dtype of the weights.

    Runs no code from the directory and unpickles nothing. Raises UnsupportedModelError, and whatever
    transformers raises for a broken directory.
    """
    _check_needs_no_code(directory)
    model, loading = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype="auto" if dtype is None else dtype,
        device_map={"": device},
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    unusable = [*loading["missing_keys"], *loading["mismatched_keys"]]
    if unusable:
        raise UnsupportedModelError(
            f"{directory}: {len(unusable)} of the model's tensors are missing or have the wrong shape, "
            f"for example {unusable[0]}"
        )
    return CausalLM(model.eval())


def _check_needs_no_code(directory: Path) -> None:
    """Raises UnsupportedModelError if the model needs code from its directory.

    If transformers has a class for the model type, the code in the directory is not needed and not read.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if config.get("auto_map") and config.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"{directory}: the model type {config.get('model_type')} needs the model's own code (auto_map), "
            "and Tiller never runs code from a model directory"
        )


def _check_config(config: Any) -> None:
    """Raises UnsupportedModelError if the model has an encoder, or options that fail only in long contexts.

    The verification at the start uses short contexts, so it does not find these options.
    """
    if config.is_encoder_decoder:
        raise UnsupportedModelError("models with an encoder are not supported")
    text = config.get_text_config()
    if "chunked_attention" in (getattr(text, "layer_types", None) or ()):
        raise UnsupportedModelError("chunked attention is not supported")
    _check_rope(text)


def _check_rope(config: Any) -> None:
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [value for value in parameters.values() if isinstance(value, dict)]
    for rope in [parameters, *by_layer_type]:
        kind = rope.get("rope_type")
        if kind in _BATCH_DEPENDENT_ROPE:
            raise UnsupportedModelError(f"rotary embeddings of type {kind!r} are not supported")


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


def _examine_layers(model: PreTrainedModel) -> tuple[list[LayerShape], list[nn.Module]]:
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
        raise UnsupportedModelError("not all of the model's layers use transformers' attention interface")
    for layer, kind in enumerate(getattr(text, "layer_types", None) or ()):
        if kind == "sliding_attention" and recorder.windows[layer] is None:
            raise UnsupportedModelError(
                "the model applies its sliding windows only in its attention mask, which is not supported"
            )
    return [recorder.shapes[layer] for layer in layers], [recorder.modules[layer] for layer in layers]


def _decoder_blocks(model: PreTrainedModel, attentions: list[nn.Module]) -> list[nn.Module]:
    """The decoder blocks: finds the ModuleList in which module i contains attention layer i."""
    for modules in model.modules():
        if isinstance(modules, nn.ModuleList) and len(modules) == len(attentions):
            pairs = zip(modules, attentions, strict=True)
            if all(attention in block.modules() for block, attention in pairs):
                return list(modules)
    raise UnsupportedModelError("the model has no list of decoder blocks with one attention layer each")


def _checksum(tensor: torch.Tensor) -> str:
    """Two exact integer sums over the tensor's bits: one weighted by row, the other by column."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if tensor.numel() == 0:
        return "empty"
    rows = tensor.shape[0] if tensor.dim() else 1
    bits = tensor.detach().contiguous().view(-1).view(integers[tensor.element_size()]).view(rows, -1)
    by_row, by_column = bits.sum(1, dtype=torch.int64), bits.sum(0, dtype=torch.int64)
    return f"{_weighted(by_row)} {_weighted(by_column)}"


def _weighted(sums: torch.Tensor) -> int:
    """A sum that changes when two different entries are swapped. Wraps around at 64 bits."""
    weights = torch.arange(1, sums.numel() + 1, device=sums.device)
    return int((sums * weights).sum())

"""The transformers model: loaded, checked, and run on a batch. Knows nothing of requests."""

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

# These stretch positions by the longest sequence of the batch, so that a row would depend on
# its neighbours.
_BATCH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


_PROBE_NAME = "tiller_probe"

BlockHook = Callable[[torch.Tensor, Batch], None]
"""Gets a decoder block's output [T, hidden_size] and the batch."""


class UnsupportedModelError(Exception):
    """The model asks for something that the engine cannot do right. The message says what."""


class CausalLM:
    """A causal language model of transformers, its code unchanged, with our attention."""

    def __init__(self, model: PreTrainedModel) -> None:
        """`model`: in eval mode, on its device. Raises UnsupportedModelError."""
        self.config = model.config.get_text_config()
        _check_config(model.config)
        self._model = model
        self._own_attention = model.config._attn_implementation
        self.layer_shapes, attentions = _examine_layers(model)
        self.blocks = _decoder_blocks(model, attentions)
        """The decoder blocks; each is called with `forward_context`, as its attention is."""
        attention.register()
        model.set_attn_implementation(attention.NAME)

        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.vocab_size = int(self.config.vocab_size)
        self.hidden_size = int(self.config.hidden_size)

    @property
    def context_length(self) -> int | None:
        """The model's own limit in tokens, if its configuration names one."""
        length = getattr(self.config, "max_position_embeddings", None)
        return None if length is None else int(length)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The end tokens that the model's generation config, else its config, names."""
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

    def hook_block(self, index: int, act: BlockHook) -> RemovableHandle:
        """Has `act` see, and perhaps change in place, a decoder block's output in every forward pass."""

        def hook(block: nn.Module, args: Any, arguments: dict[str, Any], output: Any) -> None:  # noqa: ARG001
            if "forward_context" in arguments:  # absent where the model runs by its own attention
                hidden = output[0] if isinstance(output, tuple) else output
                act(hidden[0], arguments["forward_context"].batch)

        return self.blocks[index].register_forward_hook(hook, with_kwargs=True)

    def reference_logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The float32 logits [T, vocab_size] of one sequence [T], by the model's own attention."""
        self._model.set_attn_implementation(self._own_attention)
        logits: torch.Tensor = self._model(input_ids=token_ids[None], use_cache=False).logits
        self._model.set_attn_implementation(attention.NAME)
        return logits[0].float()

    def transform(self, act: Callable[[nn.Module], None]) -> None:
        """Hands the transformers model to `act`, which replaces parts of it in place."""
        act(self._model)

    def digest(self) -> str:
        """Hex; names the weights' values, whatever device they are on."""
        summary = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            summary.update(f"{name} {list(tensor.shape)} {tensor.dtype} {_checksum(tensor)};".encode())
        return summary.hexdigest()


def load(directory: Path, dtype: torch.dtype | None, device: torch.device) -> CausalLM:
    """Loads a directory in the transformers layout; dtype None keeps the weights' own.

    Runs no code of the directory's, and unpickles nothing. Raises UnsupportedModelError, and what
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
    absent = [*loading["missing_keys"], *loading["mismatched_keys"]]
    if absent:
        raise UnsupportedModelError(
            f"{directory} lacks {len(absent)} of the model's tensors, such as {absent[0]}"
        )
    return CausalLM(model.eval())


def _check_needs_no_code(directory: Path) -> None:
    """Where transformers has a class of its own, the directory's is not needed, and not looked at."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if config.get("auto_map") and config.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"{directory} is a {config.get('model_type')} model with code of its own (auto_map), "
            "which is never run"
        )


def _check_config(config: Any) -> None:
    """Refuses what would go wrong only in longer contexts than a test when loading can try."""
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


class _LayerProbe:
    """Collects what each attention layer stores, while one token runs through a model."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self.modules: dict[int, nn.Module] = {}
        self.windows: dict[int, int | None] = {}

    def record(
        self, module: nn.Module, key: torch.Tensor, value: torch.Tensor, arguments: dict[str, Any]
    ) -> None:
        """Raises UnsupportedModelError if the layer asks for what `paged_attention` would not honour."""
        if names := attention.unsupported_arguments(module, arguments):
            raise UnsupportedModelError(f"its attention needs {', '.join(names)}, which is not supported")
        layer: Any = module.layer_idx
        if layer in self.shapes:
            raise UnsupportedModelError("it does not call transformers' attention interface as others do")
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[-1], value.shape[-1], key.dtype)
        self.modules[layer] = module
        self.windows[layer] = arguments.get("sliding_window")


def _record_layer(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - the interface's
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function that computes nothing. The _LayerProbe comes with the call, as `forward_context`.

    So transformers' registry, which lives as long as the process, holds no model.
    """
    probe = arguments.get("forward_context")
    if not isinstance(probe, _LayerProbe):
        raise UnsupportedModelError("it does not call transformers' attention interface as others do")
    probe.record(module, key, value, arguments)
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None


def _examine_layers(model: PreTrainedModel) -> tuple[list[LayerShape], list[nn.Module]]:
    """Runs one token through the model to learn what each attention layer will store, and which it is.

    Raises UnsupportedModelError if the model does not go through transformers' attention
    interface once in every layer, or asks for what `paged_attention` would not honour.
    """
    AttentionInterface.register(_PROBE_NAME, _record_layer)
    model.set_attn_implementation(_PROBE_NAME)
    probe = _LayerProbe()
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with torch.inference_mode():
        model(
            input_ids=token,
            position_ids=token,
            use_cache=False,
            logits_to_keep=token[0],
            forward_context=probe,
        )
    text = model.config.get_text_config()
    layers = range(text.num_hidden_layers)
    if sorted(probe.shapes) != list(layers):
        raise UnsupportedModelError("not all of its layers use transformers' attention interface")
    for layer, kind in enumerate(getattr(text, "layer_types", None) or ()):
        if kind == "sliding_attention" and probe.windows[layer] is None:
            raise UnsupportedModelError("its sliding windows are known to its attention mask alone")
    return [probe.shapes[layer] for layer in layers], [probe.modules[layer] for layer in layers]


def _decoder_blocks(model: PreTrainedModel, attentions: list[nn.Module]) -> list[nn.Module]:
    """The list of the model's modules of which each holds one of the attention layers, in order."""
    for modules in model.modules():
        if isinstance(modules, nn.ModuleList) and len(modules) == len(attentions):
            pairs = zip(modules, attentions, strict=True)
            if all(attention in block.modules() for block, attention in pairs):
                return list(modules)
    raise UnsupportedModelError("its decoder blocks cannot be told apart")


def _checksum(tensor: torch.Tensor) -> str:
    """Exact integer sums over the tensor's bits: plain, and weighted by row and by column."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if tensor.numel() == 0:
        return "empty"
    rows = tensor.shape[0] if tensor.dim() else 1
    bits = tensor.detach().contiguous().view(-1).view(integers[tensor.element_size()]).view(rows, -1)
    by_row, by_column = bits.sum(1, dtype=torch.int64), bits.sum(0, dtype=torch.int64)
    return f"{_weighted(by_row)} {_weighted(by_column)}"


def _weighted(sums: torch.Tensor) -> int:
    """A sum that changes when two entries change places; wraps around at 64 bits."""
    weights = torch.arange(1, sums.numel() + 1, device=sums.device)
    return int((sums * weights).sum())

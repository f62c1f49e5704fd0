"""Loads and checks a transformers model, and runs it on a batch. Knows no requests."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from inference.compute import attention
from inference.compute.attention import ForwardContext
from inference.compute.batch import Batch
from inference.interface.config import ConfigError, Rotary
from inference.interface.errors import SourceError, in_one_line
from inference.interface.quantization import Fp8Quantization, read_quantization
from inference.models import pharia, rope, shards
from inference.models.block_output import BlockOutput
from inference.models.digest import digest_of
from inference.models.errors import UnsupportedModelError
from inference.models.fp8 import loading as fp8
from inference.models.layers import decoder_blocks, examine_layers
from inference.models.loading_progress import following_transformers
from inference.tensor_parallel.group import ALONE, Group

_log = logging.getLogger(__name__)

LayerHook = Callable[[torch.Tensor, Batch], None]
"""Is called with a decoder block's output [T, hidden_size] and the batch."""


class CausalLM:
    """A causal language model of transformers: its code is unchanged, its attention is `paged_attention`."""

    def __init__(
        self, model: PreTrainedModel, context_length: int | None = None, group: Group = ALONE
    ) -> None:
        """`model`: in eval mode, on its device. `context_length`: the configured one, if any.

        `group`: the processes that share the model. Each must do the same with its part at the same time.
        Raises UnsupportedModelError if the engine cannot run the model.
        """
        self.config = model.config.get_text_config()
        _check_config(model.config)
        self.context_length = rope.prepare(model, context_length)
        """The model's own limit in tokens, or None if its configuration has none."""
        self.group = group
        self._model = model.requires_grad_(False)
        self._own_attention = model.config._attn_implementation
        self.layer_shapes, attentions = examine_layers(model)
        self.layers = decoder_blocks(model, attentions)
        """The decoder blocks. The model calls each one, and its attention, with `forward_context`."""
        self.block_output = BlockOutput(self.config)
        attention.register()
        model.set_attn_implementation(attention.NAME)

        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.vocab_size = int(self.config.vocab_size)
        self.hidden_size = int(self.config.hidden_size)

    def forward(self, forward_context: ForwardContext, out: torch.Tensor | None = None) -> torch.Tensor:
        """The float32 logits [S + P, vocab_size] at the batch's `logit_tokens`, written to `out` if given."""
        batch = forward_context.batch
        logits: torch.Tensor = self._model(
            input_ids=batch.token_ids[None],
            position_ids=batch.positions[None],
            use_cache=False,
            logits_to_keep=batch.logit_tokens,
            forward_context=forward_context,
        ).logits
        return logits[0].float() if out is None else out.copy_(logits[0])

    def hook_layer(self, index: int, act: LayerHook) -> RemovableHandle:
        """Calls `act` with a decoder block's output in every `forward`. `act` may change it in place."""

        def hook(block: nn.Module, args: Any, arguments: dict[str, Any], output: Any) -> None:  # noqa: ARG001
            if "forward_context" in arguments:  # missing when the model runs with its own attention
                act(self.block_output.hidden(output)[0], arguments["forward_context"].batch)

        return self.layers[index].register_forward_hook(hook, with_kwargs=True)

    def reference_logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        """The float32 logits [T, vocab_size] of one sequence [T], computed with the model's own attention."""
        return self.plain_logits(token_ids[None])[0]

    def plain_logits(
        self, token_ids: torch.Tensor, mask: torch.Tensor | None = None, keep: int = 0
    ) -> torch.Tensor:
        """The float32 logits [N, keep, vocab_size] at the last `keep` positions (0: at all positions).

        Computed with the model's own attention. Outside of inference mode, gradients flow through them.
        `token_ids`: N sequences [N, T]. `mask`: the same shape, 0 for padding on the right.
        """
        self._model.set_attn_implementation(self._own_attention)
        try:
            logits: torch.Tensor = self._model(
                input_ids=token_ids, attention_mask=mask, use_cache=False, logits_to_keep=keep
            ).logits
        finally:
            self._model.set_attn_implementation(attention.NAME)
        return logits.float()

    def transform(self, act: Callable[[nn.Module], None]) -> None:
        """Calls `act` with the transformers model, so that it can replace parts of the model in place."""
        act(self._model)

    def store_keys_and_values_in(self, dtype: torch.dtype) -> None:
        """Sets the dtype of the KV cache of every layer, for attention that can read it."""
        self.layer_shapes = [shape._replace(dtype=dtype) for shape in self.layer_shapes]

    def digest(self) -> str:
        """See `digest_of`: a hex digest of the weights' names, shapes and values, whatever the dtype."""
        return digest_of(self._model.state_dict())

    def use_plain_layers(self) -> None:
        """See `shards.use_plain_layers`. Afterwards, `digest` is that of this process's part."""
        shards.use_plain_layers(self._model)


def load(
    directory: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    rotary: Rotary | None = None,
    context_length: int | None = None,
    group: Group = ALONE,
) -> CausalLM:
    """Loads a directory in the transformers layout. `dtype` None keeps the dtype of the weights.

    Layers with FP8 weights keep them: `dtype` is that of the other tensors. `group`: the processes that load
    the model together, each its part. Runs no code from the directory
    and unpickles nothing. Raises UnsupportedModelError, ConfigError if `rotary` is set and the model has no
    such choice, and whatever transformers raises for a broken directory.
    """
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    is_pharia = config.get("model_type") == pharia.MODEL_TYPE
    _check_model_type(directory, config)
    if rotary and not is_pharia:
        raise ConfigError(
            f"model.rotary is set, but a model of type {config.get('model_type')} has one form only"
        )
    model_class: Any = AutoModelForCausalLM
    options = pharia.loading_options(config) if is_pharia else {}
    if quantization := _read_quantization(directory, config, device):
        model_class, options["config"] = fp8.model_class(directory, quantization)
    with following_transformers(f"loading {directory.name}"), _naming_faults(directory):
        model, loading = model_class.from_pretrained(
            directory,
            **options,
            dtype="auto" if dtype is None else dtype,
            **({"device_map": {"": device}} if group.size == 1 else shards.loading_options(group)),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # _check_tensors names them
            output_loading_info=True,
        )
    _check_tensors(directory, model, loading, is_pharia)
    if quantization:
        fp8.finish(model, quantization)
    if is_pharia:
        pharia.set_rotary(model, rotary or "interleaved")
    with _naming_faults(directory):
        return CausalLM(model.eval(), context_length, group)


@contextmanager
def _naming_faults(directory: Path) -> Iterator[None]:
    """Raises UnsupportedModelError for the errors that transformers' code ends with if the values in the
    model's files do not fit together. They name neither the file nor the value."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnsupportedModelError(
            f"{directory}: transformers {transformers.__version__} cannot run this model, or the values in "
            f"its JSON files are wrong: {in_one_line(error)}"
        ) from error


def _read_quantization(
    directory: Path, config: dict[str, Any], device: torch.device
) -> Fp8Quantization | None:
    """None: the weights are not quantized. Raises UnsupportedModelError if they cannot run here."""
    try:
        quantization = read_quantization(config)
    except SourceError as error:
        raise UnsupportedModelError(f"{directory}: {error}") from None
    if quantization and config.get("model_type") == pharia.MODEL_TYPE:
        raise UnsupportedModelError(f"{directory}: quantized weights are not supported for Pharia")
    if quantization:
        fp8.check_device(device)
    return quantization


def _check_tensors(directory: Path, model: PreTrainedModel, loading: dict[str, Any], is_pharia: bool) -> None:
    """Raises UnsupportedModelError if the model cannot be computed from the tensors of the checkpoint."""
    problems = [f"{name} is missing" for name in sorted(loading["missing_keys"])]
    problems += [
        f"{name} has the shape {list(found)} instead of {list(expected)}"
        for name, found, expected in sorted(loading["mismatched_keys"])
    ]
    problems += fp8.find_problems(model, set(loading["unexpected_keys"]))
    unknown = sorted(loading["unexpected_keys"])
    if is_pharia:
        problems += [f"{name} is unknown" for name in unknown]
        problems = [pharia.restore_names(problem) for problem in problems]
    if problems:
        raise UnsupportedModelError(
            f"{directory}: {len(problems)} of the model's tensors are missing or do not fit, "
            f"for example: {problems[0]}"
        )
    if unknown:  # a chat does not need all parts of all models
        _log.warning(
            "the model does not use %d tensors of its checkpoint, for example %s; if it should, check the "
            "model_type, num_hidden_layers and the biases in config.json",
            len(unknown),
            unknown[0],
        )


def _check_model_type(directory: Path, config: dict[str, Any]) -> None:
    """Raises UnsupportedModelError if there is no code for the model, or only in its directory.

    If transformers has a class for the model type, or Tiller maps it to one, the code in the directory is not
    needed and not read.
    """
    model_type = config.get("model_type")
    if model_type in {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, pharia.MODEL_TYPE}:
        return
    if config.get("auto_map"):
        raise UnsupportedModelError(
            f"{directory}: the model type {model_type} needs the model's own code (auto_map), "
            "and Tiller never runs code from a model directory"
        )
    if model_type:
        raise UnsupportedModelError(
            f"{directory}: models of type {model_type} are not supported, only language models that "
            f"continue a text, and that the installed transformers {transformers.__version__} knows"
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
    if getattr(text, "attn_temperature_tuning", None) and text.model_type.startswith("llama4"):
        raise UnsupportedModelError("attn_temperature_tuning is not supported")  # by rows, not by positions
    if getattr(text, "keep_window_size", None):
        raise UnsupportedModelError("attention to a choice of the tokens (keep_window_size) is not supported")

"""Replaces the forward pass of a whole decoder layer by one operation."""

from typing import Any

import torch
from torch import nn

from inference.backends.comparison import compute_the_same
from inference.backends.cpu.modules import QuantizedGatedMLP, RMSNorm
from inference.backends.cpu.paged_attention import attend
from inference.backends.cpu.quantized_attention import QuantizedAttention
from inference.backends.trial import Trial

_PARTS: dict[str, type[nn.Module]] = {  # in Llama and models like it
    "input_layernorm": RMSNorm,
    "self_attn": QuantizedAttention,
    "post_attention_layernorm": RMSNorm,
    "mlp": QuantizedGatedMLP,
}


def fuse_decoder_layer(layer: nn.Module) -> None:
    """Replaces the layer's forward by one operation, if its parts are fused and the result is the same.

    The layer itself stays in the model, so hooks on it still work.
    """
    parts: dict[str, Any] = dict(layer.named_children())
    if {name: type(part) for name, part in parts.items()} != _PARTS:
        return
    attention, mlp = parts["self_attn"], parts["mlp"]
    operation = torch.classes.tiller_cpu.DecoderLayer(
        attention.operation,
        *mlp.arguments,
        *parts["input_layernorm"].arguments,
        *parts["post_attention_layernorm"].arguments,
    )
    forward = _forward(operation, attention, layer.forward)
    trial = Trial(attention.kv_heads, attention.head_dim, attend, like=torch.empty(0))
    size, original = attention.hidden_size, layer.forward
    if compute_the_same(lambda: trial.run(original, size), lambda: trial.run(forward, size)):
        layer.forward = forward


def _forward(operation: Any, attention: QuantizedAttention, original: Any) -> Any:
    def forward(hidden_states: torch.Tensor, *others: Any, **arguments: Any) -> Any:
        inputs = attention.inputs_of(arguments)
        if inputs is None:
            return original(hidden_states, *others, **arguments)
        return operation.forward(hidden_states, *arguments["position_embeddings"], *inputs)

    return forward

"""A whole decoder layer as one operation."""

from typing import Any

import torch
from torch import nn

from inference.backends.comparison import are_close
from inference.backends.cpu.modules import QuantizedGatedMLP, RMSNorm
from inference.backends.cpu.paged_attention import attend
from inference.backends.cpu.quantized_attention import QuantizedAttention
from inference.backends.trial import Trial

_PARTS: dict[str, type[nn.Module]] = {  # of a Llama's, and of those who took it over
    "input_layernorm": RMSNorm,
    "self_attn": QuantizedAttention,
    "post_attention_layernorm": RMSNorm,
    "mlp": QuantizedGatedMLP,
}


def fuse_decoder_layer(layer: nn.Module) -> None:
    """Has the layer's forward be one operation, if its parts are and that computes the same.

    The layer stays, with the hooks that it has and will get.
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
    forward = _forward(operation, attention.layer, layer.forward)
    trial = Trial(attention.kv_heads, attention.head_dim, attend, like=torch.empty(0))
    expected, ours = (trial.run(act, attention.hidden_size) for act in (layer, forward))
    if isinstance(expected, torch.Tensor) and are_close(expected, ours):
        layer.forward = forward


def _forward(operation: Any, index: int, theirs: Any) -> Any:
    def forward(hidden_states: torch.Tensor, *others: Any, **arguments: Any) -> Any:
        forward_context = arguments.get("forward_context")
        inputs = None if forward_context is None else forward_context.paged_inputs(index)
        if inputs is None:
            return theirs(hidden_states, *others, **arguments)
        return operation.forward(hidden_states, *arguments["position_embeddings"], *inputs)

    return forward

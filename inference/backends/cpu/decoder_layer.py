"""A whole decoder layer as one operation."""

from typing import Any

import torch
from torch import nn

from inference.backends.cpu.int8_attention import Int8Attention
from inference.backends.cpu.modules import Int8GatedMLP, RMSNorm
from inference.backends.cpu.paged_attention import attend
from inference.backends.likeness import are_alike
from inference.backends.trial import Trial

_PARTS: dict[str, type[nn.Module]] = {  # of a Llama's, and of those who took it over
    "input_layernorm": RMSNorm,
    "self_attn": Int8Attention,
    "post_attention_layernorm": RMSNorm,
    "mlp": Int8GatedMLP,
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
    if isinstance(expected, torch.Tensor) and are_alike(expected, ours):
        layer.forward = forward


def _forward(operation: Any, index: int, theirs: Any) -> Any:
    def forward(hidden_states: torch.Tensor, *others: Any, **arguments: Any) -> Any:
        paged = arguments.get("paged")
        places = None if paged is None else paged.in_place(index)
        if places is None:
            return theirs(hidden_states, *others, **arguments)
        return operation.forward(hidden_states, *arguments["position_embeddings"], *places)

    return forward

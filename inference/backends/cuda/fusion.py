"""Replaces the forward pass of Llama-like decoder layers by fewer launches. Other layers stay as they are."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody uses

from inference.backends.comparison import are_close, has_untestable_options
from inference.backends.cuda.layers import add_rms_norm, gate, rms_norm, rotate_and_store
from inference.backends.cuda.paged_attention import attend, attend_stored
from inference.backends.trial import Trial
from inference.compute.attention import PagedInputs

_LAYER = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")  # in Llama and models like it
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


@torch.inference_mode()
def fuse(model: nn.Module) -> None:
    """Makes the decoder layers of a CUDA model compute the same in fewer launches. They keep their hooks."""
    for module in list(model.modules()):
        if _looks_like_llama(module):
            _fuse_layer(module)


class FusedLayer:
    """Computes h = x + attention(norm(x)) and returns h + mlp(norm(h)).

    Uses the weights of the layer. Those of q, k and v are joined into one matrix, and those of gate and up.
    """

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.layer_idx: int = attention.layer_idx
        self.head_dim: int = attention.head_dim
        self.hidden_size: int = attention.q_proj.in_features
        self.kv_heads: int = attention.k_proj.out_features // self.head_dim
        self._scaling: float = attention.scaling
        self._window: int = getattr(attention, "sliding_window", None) or 0
        self._qkv = _join([attention.q_proj, attention.k_proj, attention.v_proj])
        self._projection = attention.o_proj
        self._gate_up = _join([mlp.gate_proj, mlp.up_proj])
        self._down = mlp.down_proj
        self._first_norm, self._second_norm = (
            (norm.weight, norm.variance_epsilon)
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )

    def forward(
        self,
        hidden: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        inputs: PagedInputs,
        num_decodes: int,
    ) -> torch.Tensor:
        """`hidden`: [1, T, hidden_size], like the result; `angles`: cosines and sines [1, T, head_dim]."""
        x = hidden[0]
        attended = self._attend(rms_norm(x, *self._first_norm), angles, inputs, num_decodes)
        x, normal = add_rms_norm(attended, x, *self._second_norm)
        return x.add_(self._down(gate(F.linear(normal, *self._gate_up))))[None]

    def _attend(
        self,
        x: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        inputs: PagedInputs,
        num_decodes: int,
    ) -> torch.Tensor:
        qkv = F.linear(x, *self._qkv)
        queries = rotate_and_store(qkv, *angles, inputs.key_cache, inputs.value_cache, inputs.slot_mapping)
        attended = attend_stored(queries, inputs, num_decodes, self._scaling, self._window, softcap=0.0)
        projected: torch.Tensor = self._projection(attended.flatten(1))
        return projected


def _looks_like_llama(module: nn.Module) -> bool:
    """Whether the module has the parts of a Llama decoder layer. A trial checks later what it computes."""
    parts: dict[str, Any] = dict(module.named_children())
    if set(parts) != set(_LAYER):
        return False
    attention, mlp = parts["self_attn"], parts["mlp"]
    norms = parts["input_layernorm"], parts["post_attention_layernorm"]
    return (
        _consists_of(attention, _ATTENTION)
        and all(hasattr(attention, name) for name in ("layer_idx", "scaling", "head_dim", "config"))
        and not has_untestable_options(attention)
        and _consists_of(mlp, _MLP)
        and mlp.gate_proj.bias is None
        and mlp.up_proj.bias is None
        and _is_silu(mlp.act_fn, mlp.gate_proj.weight)
        and all(hasattr(norm, "variance_epsilon") and hasattr(norm, "weight") for norm in norms)
    )


def _consists_of(module: Any, names: tuple[str, ...]) -> bool:
    """Whether the children that have parameters are linear layers with exactly these names."""
    parts = {name: part for name, part in module.named_children() if list(part.parameters())}
    return set(parts) == set(names) and all(type(part) is nn.Linear for part in parts.values())


def _is_silu(function: Any, like: torch.Tensor) -> bool:
    x = torch.linspace(-8, 8, 100).to(like)
    return are_close(F.silu(x), function(x))


def _fuse_layer(layer: Any) -> None:
    original = layer.forward
    fused = FusedLayer(layer)

    def forward(hidden_states: torch.Tensor, *others: Any, **arguments: Any) -> Any:
        forward_context = arguments.get("forward_context")
        inputs = forward_context and forward_context.paged_inputs(fused.layer_idx)
        if forward_context is None or inputs is None:
            return original(hidden_states, *others, **arguments)
        return fused.forward(
            hidden_states, arguments["position_embeddings"], inputs, forward_context.num_decodes
        )

    trial = Trial(fused.kv_heads, fused.head_dim, attend, like=layer.input_layernorm.weight)
    expected, actual = (trial.run(act, fused.hidden_size) for act in (layer, forward))
    if isinstance(expected, torch.Tensor) and are_close(expected, actual):
        layer.forward = forward


def _join(linears: list[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns the concatenated weights and biases. The layers then hold views of them."""
    sizes = [linear.out_features for linear in linears]
    weight = torch.cat([linear.weight for linear in linears])
    for linear, part in zip(linears, torch.split(weight, sizes), strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    if linears[0].bias is None:
        return weight, None
    bias = torch.cat([linear.bias for linear in linears])
    for linear, part in zip(linears, torch.split(bias, sizes), strict=True):
        linear.bias = nn.Parameter(part, requires_grad=False)
    return weight, bias

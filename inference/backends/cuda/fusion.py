"""Replaces the forward pass of Llama-like decoder layers by fewer launches. Other layers stay as they are."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that everybody uses

from inference.backends.comparison import are_close, has_untestable_options
from inference.backends.cuda.layers import HeadNorms, add_rms_norm, gate, rms_norm, rotate_and_store
from inference.backends.cuda.paged_attention import attend, attend_stored
from inference.backends.trial import Trial
from inference.compute.attention import ForwardContext, PagedInputs
from inference.interface.errors import in_one_line
from inference.models.shards import RowParallelLinear

_log = logging.getLogger(__name__)

_LAYER = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")  # in Llama and models like it
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_HEAD_NORMS = ("q_norm", "k_norm")  # in Qwen3 and models like it
_MLP = ("gate_proj", "up_proj", "down_proj")

Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines [1, T, head_dim]."""


@torch.no_grad()  # not inference mode: gradients have to flow through the weights that this joins
def fuse(model: nn.Module) -> None:
    """Makes the decoder layers of a CUDA model compute the same in fewer launches. They keep their hooks.

    Layers that are already fused stay as they are.
    """
    for module in list(model.modules()):
        if _looks_like_llama(module) and not isinstance(module.forward, _FusedForward):
            _try_to_fuse(module)


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
        self._head_norms: HeadNorms | None = None
        if hasattr(attention, "q_norm"):
            weights = attention.q_norm.weight, attention.k_norm.weight
            self._head_norms = HeadNorms(*weights, attention.q_norm.variance_epsilon)
        self._first_norm, self._second_norm = (
            (norm.weight, norm.variance_epsilon)
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )

    def can_run(self, angles: Angles) -> bool:
        """False if the layer rotates only a part of each head, or if the angles would have to be copied."""
        return all(
            part.shape[-1] == self.head_dim and part.shape[:-2].numel() == 1 and part.is_contiguous()
            for part in angles
        )

    def forward(
        self, hidden: torch.Tensor, angles: Angles, inputs: PagedInputs, num_decodes: int
    ) -> torch.Tensor:
        """`hidden`: [1, T, hidden_size], like the result."""
        x = hidden[0]
        attended = self._attend(rms_norm(x, *self._first_norm), angles, inputs, num_decodes)
        x, normal = add_rms_norm(attended, x, *self._second_norm)
        return _add_product(x, self._down, gate(self._gate_up(normal)))[None]

    def _attend(self, x: torch.Tensor, angles: Angles, inputs: PagedInputs, num_decodes: int) -> torch.Tensor:
        caches = inputs.key_cache, inputs.value_cache
        queries = rotate_and_store(self._qkv(x), *angles, *caches, inputs.slot_mapping, self._head_norms)
        attended = attend_stored(queries, inputs, num_decodes, self._scaling, self._window, softcap=0.0)
        projected: torch.Tensor = self._projection(attended.flatten(1))
        return projected


class _FusedForward:
    """Takes the place of a layer's `forward`. Calls the original where the fused layer cannot compute."""

    def __init__(self, layer: Any) -> None:
        self.original = layer.forward
        self.fused = FusedLayer(layer)

    def __call__(self, hidden_states: torch.Tensor, *others: Any, **arguments: Any) -> Any:
        context, angles = arguments.get("forward_context"), arguments.get("position_embeddings")
        if isinstance(context, ForwardContext) and angles is not None and self.fused.can_run(angles):
            inputs = context.paged_inputs(self.fused.layer_idx)
            if inputs is not None:
                return self.fused.forward(hidden_states, angles, inputs, context.num_decodes)
        return self.original(hidden_states, *others, **arguments)


def _looks_like_llama(module: nn.Module) -> bool:
    """Whether the module has the parts of a Llama decoder layer. A trial checks later what it computes."""
    parts: dict[str, Any] = dict(module.named_children())
    if set(parts) != set(_LAYER):
        return False
    attention, mlp = parts["self_attn"], parts["mlp"]
    norms = parts["input_layernorm"], parts["post_attention_layernorm"]
    return (
        all(hasattr(attention, name) for name in ("layer_idx", "scaling", "head_dim", "config"))
        and _looks_like_llama_attention(attention)
        and len({attention.get_submodule(name).bias is None for name in _ATTENTION[:3]}) == 1
        and attention.k_proj.out_features == attention.v_proj.out_features
        and not has_untestable_options(attention)
        and _has_linears(mlp, _MLP)
        and mlp.gate_proj.bias is None
        and mlp.up_proj.bias is None
        and _is_silu(mlp.act_fn, mlp.gate_proj.weight)
        and all(_is_rms_norm(norm, attention.q_proj.in_features) for norm in norms)
    )


def _looks_like_llama_attention(attention: Any) -> bool:
    if not hasattr(attention, "q_norm"):
        return _has_linears(attention, _ATTENTION)
    norms = [getattr(attention, name, None) for name in _HEAD_NORMS]
    return (
        _has_linears(attention, _ATTENTION, others=_HEAD_NORMS)
        and all(_is_rms_norm(norm, attention.head_dim) for norm in norms)
        and len({norm.variance_epsilon for norm in norms if norm is not None}) == 1
    )


def _has_linears(module: nn.Module, names: tuple[str, ...], others: tuple[str, ...] = ()) -> bool:
    """Whether the children that have parameters are `others`, and linear layers with these names."""
    parts = {name: part for name, part in module.named_children() if list(part.parameters())}
    kinds = nn.Linear, RowParallelLinear  # the second one only as the last of an attention or MLP
    return set(parts) == {*names, *others} and all(
        type(parts[name]) in kinds[: 1 + (name == names[-1])] for name in names
    )


def _is_rms_norm(norm: Any, size: int) -> bool:
    weight = getattr(norm, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.shape == (size,) and hasattr(norm, "variance_epsilon")


def _is_silu(function: Any, like: torch.Tensor) -> bool:
    x = torch.linspace(-8, 8, 100).to(like)
    return are_close(F.silu(x), function(x))


def _try_to_fuse(layer: Any) -> None:
    """A layer that only looks like one of Llama's may fail in the trial. Then it stays as it is."""
    try:
        _fuse_layer(layer)
    except torch.AcceleratorError:
        raise  # The device is unusable for the rest of the process's life.
    except Exception as error:  # any kind: the layer's own code, or a kernel
        _log.warning("a decoder layer is not fused, so the server will be slower: %s", in_one_line(error))


def _fuse_layer(layer: Any) -> None:
    forward = _FusedForward(layer)
    fused = forward.fused
    trial = Trial(fused.kv_heads, fused.head_dim, attend, like=layer.input_layernorm.weight)
    # `forward` and not the layer itself, so that no hook of the layer runs.
    expected, actual = (trial.run(act, fused.hidden_size) for act in (layer.forward, forward))
    if isinstance(expected, torch.Tensor) and are_close(expected, actual):
        layer.forward = forward


def _add_product(total: torch.Tensor, linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Adds linear(x) to `total` in place, if possible within the product. Returns `total`."""
    if type(linear) is nn.Linear and linear.bias is None:
        return total.addmm_(x, linear.weight.t())
    return total.add_(linear(x))


def _join(linears: list[nn.Linear]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a linear layer that computes all outputs. The layers then hold views of its weights."""
    weight = _join_parameters(linears, "weight")
    bias = None if linears[0].bias is None else _join_parameters(linears, "bias")
    return partial(F.linear, weight=weight, bias=bias)


def _join_parameters(linears: list[nn.Linear], name: str) -> torch.Tensor:
    joined = torch.cat([getattr(linear, name) for linear in linears])
    parts = torch.split(joined, [linear.out_features for linear in linears])
    for linear, part in zip(linears, parts, strict=True):
        setattr(linear, name, nn.Parameter(part, requires_grad=False))
    return joined

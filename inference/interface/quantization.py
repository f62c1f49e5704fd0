"""Reads from config.json how the weights are quantized. Knows no tensors.

Sources: the classes QuantizationConfig and QuantizationArgs of compressed-tensors, transformers'
FineGrainedFP8Config, and AutoFP8 (quant_method "fp8" without blocks).
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from inference.interface.errors import SourceError

BLOCK = 128
"""Rows and columns of a block of weights with one scale, and activations with one scale."""

_NUMBERS_OF_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
INSTEAD = "use a checkpoint in bf16, in FP8 (compressed-tensors or fp8), or a GGUF file"


@dataclass(frozen=True)
class Fp8Scheme:
    """How the linear layers of one group compute."""

    weights: Literal["tensor", "channel", "block"]
    """One scale for the whole weight, for each output channel, or for each block of 128 x 128."""
    activations: Literal["tensor", "token", "group"]
    """A stored scale for the whole input, or scales computed for each token or for its groups of 128."""


@dataclass(frozen=True)
class Fp8Quantization:
    """Which linear layers have FP8 weights. All patterns match names of modules."""

    method: str
    groups: tuple[tuple[re.Pattern[str], Fp8Scheme], ...]
    """The first pattern that matches decides."""
    ignored: tuple[re.Pattern[str], ...]
    has_cache_scales: bool = False
    """The checkpoint was made for a KV cache in FP8."""

    def scheme(self, module: str) -> Fp8Scheme | None:
        """The scheme of a linear layer. None: its weight is not quantized."""
        if any(pattern.match(module) for pattern in self.ignored):
            return None
        return next((scheme for pattern, scheme in self.groups if pattern.match(module)), None)


def read_quantization(config: dict[str, Any]) -> Fp8Quantization | None:
    """`config`: config.json. None: the weights are not quantized.

    Raises SourceError, which names the method and what to use instead, if Tiller cannot compute with it.
    """
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if isinstance(part.get(key), dict) and part[key]:
                quantization = _read(part[key])
                _check_has_no_experts(part, quantization.method)
                return quantization
    return None


def _check_has_no_experts(config: dict[str, Any], method: str) -> None:
    """Finds most mixtures of experts before their weights are downloaded. Raises SourceError."""
    for name in _NUMBERS_OF_EXPERTS:
        if isinstance(config.get(name), int) and config[name] > 1:
            raise SourceError(
                f"its weights are quantized with {method} (config.json), which is not supported for a "
                "mixture of experts; use a checkpoint in bf16, or a GGUF file"
            )


def _read(quantization: dict[str, Any]) -> Fp8Quantization:
    method = str(quantization.get("quant_method") or "an unknown method")
    try:
        if method == "compressed-tensors":
            return _read_compressed_tensors(quantization)
        if method == "fp8":
            return _read_fp8(quantization)
    except re.error as error:
        raise _unsupported(f"{method} with the pattern {error.pattern!r}") from None
    except (AttributeError, TypeError):
        raise _unsupported(f"{method} and an unknown description") from None
    if method == "an unknown method" and {"load_in_4bit", "load_in_8bit"} & set(quantization):
        method = "bitsandbytes"
    raise _unsupported(method)


def _read_fp8(quantization: dict[str, Any]) -> Fp8Quantization:
    """Of Qwen and DeepSeek (blocks of 128 x 128), of Mistral and AutoFP8 (one scale per weight)."""
    for name, accepted in (("fmt", (None, "e4m3")), ("scale_fmt", (None, "float"))):
        if quantization.get(name) not in accepted:
            raise _unsupported(f"fp8 with {name} {quantization[name]}")
    block = quantization.get("weight_block_size") or None
    activations = quantization.get("activation_scheme", "dynamic")
    if block not in (None, [BLOCK, BLOCK]):
        raise _unsupported(f"fp8 with weight_block_size {block}")
    if activations not in ("dynamic", "static") or (block and activations == "static"):
        raise _unsupported(f"fp8 with activation_scheme {activations}" + (" and blocks" if block else ""))
    if block:
        scheme = Fp8Scheme("block", "group")
    else:
        scheme = Fp8Scheme("tensor", "token" if activations == "dynamic" else "tensor")
    names = quantization.get("modules_to_not_convert") or quantization.get("ignored_layers") or ["lm_head"]
    return Fp8Quantization("fp8", ((_ANY, scheme),), tuple(_skipped(name) for name in names))


def _skipped(name: str) -> re.Pattern[str]:
    """As transformers reads `modules_to_not_convert`: a pattern of a name's start, or the end of a name.

    Newer files also have "re:" and a regular expression.
    """
    if name.startswith("re:"):
        return _target(name)
    return re.compile(rf"(?:{name})(?:(?<=\.)|(?=\.|$))|.*{re.escape(name)}$")


def _read_compressed_tensors(quantization: dict[str, Any]) -> Fp8Quantization:
    sparsity = quantization.get("sparsity_config") or {}
    if sparsity.get("format") not in (None, "dense"):
        raise _unsupported(f"compressed-tensors with sparse weights ({sparsity['format']})")
    if quantization.get("transform_config"):
        raise _unsupported("compressed-tensors with transform_config")
    described = quantization.get("config_groups")
    if not isinstance(described, dict) or not described:
        raise _unsupported("compressed-tensors without config_groups")
    groups = []
    for name, group in described.items():
        scheme = _read_group(name, group, quantization.get("format"))
        groups += [(target, _target(target), scheme) for target in group.get("targets", ())]
    groups.sort(key=lambda entry: entry[0] == "Linear")  # names decide before the class
    return Fp8Quantization(
        "compressed-tensors",
        tuple((pattern, scheme) for _, pattern, scheme in groups),
        tuple(_target(target) for target in quantization.get("ignore") or ()),
        has_cache_scales=bool(quantization.get("kv_cache_scheme")),
    )


def _read_group(name: str, group: Any, common_format: Any) -> Fp8Scheme:
    group = group if isinstance(group, dict) else {}
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    what = f"compressed-tensors ({name}: {group.get('format') or common_format})"
    if not _is_fp8(weights) or weights.get("dynamic"):
        raise _unsupported(f"{what} with {_describe(weights)} weights")
    if not _is_fp8(inputs) or group.get("output_activations"):
        described = _describe(inputs) if inputs else "unquantized"
        raise _unsupported(f"{what} with FP8 weights and {described} activations")
    kind, activations, dynamic = weights.get("strategy"), inputs.get("strategy"), inputs.get("dynamic")
    if kind == "block" and weights.get("block_structure") == [BLOCK, BLOCK]:
        if activations == "group" and inputs.get("group_size") == BLOCK and dynamic is True:
            return Fp8Scheme("block", "group")
    elif kind in ("tensor", "channel"):
        if activations == "token" and dynamic is True:
            return Fp8Scheme(kind, "token")
        if activations == "tensor" and not dynamic:
            return Fp8Scheme(kind, "tensor")
    raise _unsupported(
        f"{what} with scales of weights per {kind} {weights.get('block_structure') or ''}".rstrip()
        + f" and {'dynamic' if dynamic else 'static'} scales of activations per {activations}"
    )


def _is_fp8(numbers: dict[str, Any]) -> bool:
    return numbers.get("num_bits") == 8 and numbers.get("type") == "float" and numbers.get("symmetric", True)


def _describe(numbers: dict[str, Any]) -> str:
    return f"{numbers.get('num_bits')}-bit {numbers.get('type')}"


def _target(target: str) -> re.Pattern[str]:
    """As compressed-tensors reads it: a class, "re:" and a regular expression, or the name of a module."""
    if target == "Linear":
        return _ANY
    return re.compile(target[3:] if target.startswith("re:") else re.escape(target) + "$")


def _unsupported(description: str) -> SourceError:
    return SourceError(
        f"its weights are quantized with {description} (config.json), which is not supported; {INSTEAD}"
    )


_ANY = re.compile("")

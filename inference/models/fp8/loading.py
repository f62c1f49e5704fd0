"""Loads checkpoints with FP8 weights into a model of transformers, without transformers' own quantizers.

Those need packages (compressed-tensors, kernels) that compute with other kernels, or download them. Here,
transformers builds and fills the model as usual. Only its linear layers are replaced before the tensors are
read.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from inference.interface.quantization import Fp8Quantization, Fp8Scheme
from inference.interface.weights import weight_files
from inference.models.errors import UnsupportedModelError
from inference.models.fp8.linear import Fp8Linear, ScaleNames, find_unsuitable_size

_log = logging.getLogger("tiller.worker")

_LEAST_CAPABILITY = (8, 9)  # Ada; 9.0 is Hopper
_WEIGHT_SCALES = ("weight_scale", "weight_scale_inv")
_INPUT_SCALES = ("input_scale", "activation_scale")
_CACHE_SCALES = ("k_scale", "v_scale", "kv_scale", "q_scale", "prob_scale", "output_scale")


def check_device(device: torch.device) -> None:
    """Raises UnsupportedModelError if the device cannot multiply FP8 numbers."""
    if device.type != "cuda":
        raise UnsupportedModelError(
            "FP8 weights need a GPU of compute capability 8.9 or higher (Ada, Hopper); here, use the "
            "checkpoint in bf16 or a GGUF file, on a CPU with engine.quantization: integer"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _LEAST_CAPABILITY:
        raise UnsupportedModelError(
            "FP8 weights need a GPU of compute capability 8.9 or higher (Ada, Hopper), but this one has "
            f"{capability[0]}.{capability[1]}; use the checkpoint in bf16"
        )


def model_class(directory: Path, quantization: Fp8Quantization) -> tuple[type[PreTrainedModel], Any]:
    """A class whose `from_pretrained` loads the directory, and the config to pass to it.

    Raises UnsupportedModelError if a layer with FP8 weights is not supported.
    """
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    _remove_quantization(config)
    if getattr(config, "dtype", None) in (None, torch.float8_e4m3fn):
        config.dtype = torch.bfloat16
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    schemes = _find_schemes(directory, skeleton, quantization)
    names = _read_scale_names(directory)
    base: type[PreTrainedModel] = type(skeleton)

    def build(self: Any, *arguments: Any, **options: Any) -> None:
        base.__init__(self, *arguments, **options)
        for name, scheme in schemes.items():
            self.set_submodule(name, Fp8Linear(self.get_submodule(name), scheme, names))

    # transformers looks for the source of a class by its module.
    members = {"__init__": build, "__module__": base.__module__, "__qualname__": base.__qualname__}
    return type(base.__name__, (base,), members), skeleton.config


def finish(model: PreTrainedModel, quantization: Fp8Quantization) -> None:
    """Prepares the layers of a loaded model, which then has the class of transformers again.

    Raises UnsupportedModelError if a scale is not a positive number.
    """
    model.__class__ = type(model).__base__
    for name, module in model.named_modules():
        if isinstance(module, Fp8Linear):
            try:
                module.prepare()
            except ValueError as error:
                raise UnsupportedModelError(f"{model.name_or_path}: {name}: {error}") from None
    if quantization.has_cache_scales:
        _log.info(
            "the checkpoint has scales for a KV cache in FP8; they are not used, the cache is %s", model.dtype
        )


def find_problems(model: PreTrainedModel, unexpected_keys: set[str]) -> list[str]:
    """Tensors of scales whose weights the model did not load as FP8. Those of a KV cache are not needed."""
    modules = {name for name, _ in model.named_modules()}
    problems = []
    for key in sorted(unexpected_keys):
        module, _, name = key.rpartition(".")
        if module in modules and name.endswith(("_scale", "_scale_inv")) and name not in _CACHE_SCALES:
            problems.append(f"{key} belongs to no layer with FP8 weights")
    return problems


def _remove_quantization(config: Any) -> None:
    for part in (config, config.get_text_config()):
        for name in ("quantization_config", "compression_config"):
            if hasattr(part, name):
                delattr(part, name)


def _find_schemes(
    directory: Path, model: PreTrainedModel, quantization: Fp8Quantization
) -> dict[str, Fp8Scheme]:
    """The layers with FP8 weights, by name."""
    tied = model.get_output_embeddings() if model.config.get_text_config().tie_word_embeddings else None
    schemes = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "experts":
            raise UnsupportedModelError(
                f"{directory}: FP8 weights are not supported for a mixture of experts; "
                "use a checkpoint in bf16"
            )
        scheme = quantization.scheme(name) if type(module) is nn.Linear and module is not tied else None
        if scheme is None:
            continue
        if size := find_unsuitable_size(module, scheme):
            raise UnsupportedModelError(
                f"{directory}: FP8 weights need sizes that are multiples of 16, but {name} has {size}; "
                "use the checkpoint in bf16"
            )
        schemes[name] = scheme
    if not schemes:
        raise UnsupportedModelError(
            f"{directory}: quantization_config ({quantization.method}) matches no linear layer of the model"
        )
    return schemes


def _read_scale_names(directory: Path) -> ScaleNames:
    """Finds them in the headers of the files. Raises UnsupportedModelError if weights are e5m2, not e4m3."""
    found: dict[str, tuple[int, ...]] = {}
    for file in weight_files(directory):
        with safe_open(directory / file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - no dictionary
                name = key.rpartition(".")[2]
                tensor = tensors.get_slice(key)
                if name == "weight" and tensor.get_dtype() == "F8_E5M2":
                    raise UnsupportedModelError(
                        f"{directory}: {key} is in e5m2; of FP8, only e4m3 is supported"
                    )
                if name not in found and name in (*_WEIGHT_SCALES, *_INPUT_SCALES):
                    found[name] = tuple(tensor.get_shape())
    weight, input_ = (
        next((name for name in names if name in found), names[0]) for names in (_WEIGHT_SCALES, _INPUT_SCALES)
    )
    shapes = (found.get(name, (1,)) for name in (weight, input_))
    weight_shape, input_shape = (shape if shape in ((), (1,)) else (1,) for shape in shapes)
    return ScaleNames(weight, input_, weight_shape, input_shape)

"""Loads a model and prepares it for this machine. The processes of a group all do this at the same time."""

import json
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from inference.backends.backend import Backend
from inference.interface.config import ConfigError, EngineConfig
from inference.interface.quantization import read_quantization
from inference.models import causal_lm, pharia, shards
from inference.models.causal_lm import CausalLM
from inference.runner.adaptation import adapt
from inference.runner.devices import choose_dtype
from inference.runner.verification_record import VerificationRecord
from inference.tensor_parallel.group import Group


class LoadedModel(NamedTuple):
    model: CausalLM
    digest: str
    """Of the whole model's weights."""
    backend: Backend


def load(config: EngineConfig, directory: Path, group: Group) -> LoadedModel:
    """Raises ConfigError, UnsupportedModelError, KernelError, OSError and ValueError."""
    dtype = choose_dtype(config, group.device)
    model = causal_lm.load(directory, dtype, group.device, config.rotary, config.context_length, group)
    digest = model.digest()
    on_cpu = group.size == 1 and group.device.type == "cpu"
    record = VerificationRecord(model, digest, config) if on_cpu else None
    return LoadedModel(model, digest, adapt(model, config, record))


def check_group(config: EngineConfig, directory: Path) -> None:
    """Raises ConfigError if several processes cannot share this model here."""
    size = config.tensor_parallel
    if not dist.is_available():
        raise ConfigError(f"engine.tensor_parallel is {size}, but torch is built without torch.distributed")
    if config.refine_directions:
        raise ConfigError("steering.refine and engine.tensor_parallel cannot be used together")
    if config.quantization != "none":
        raise ConfigError(
            f"engine.quantization {config.quantization} and engine.tensor_parallel cannot be used together"
        )
    written = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if read_quantization(written):
        raise ConfigError("engine.tensor_parallel does not work with quantized weights")
    if written.get("model_type") == pharia.MODEL_TYPE:
        shards.check_divisible(pharia.loading_options(written)["config"], size)
    else:
        shards.check_divisible(shards.read_config(str(directory)), size)

"""The settings of the served models and of their engines."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationInfo,
)

from app.settings.cluster import ScaleSettings
from app.settings.section import PositiveInt, Section
from inference.interface.config import Device, DType, EngineConfig, Quantization, Rotary

_DEFAULTS = EngineConfig()


def _check_distinct(blocks: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(blocks)) < len(blocks):
        raise ValueError("must name each decoder block once")
    return blocks


def _check_not_beside_gib(share: float | None, info: ValidationInfo) -> float | None:
    if share is not None and info.data.get("kv_cache_gib") is not None:
        raise ValueError("must not be set beside kv_cache_gib")
    return share


def _accept_former_name(quantization: object) -> object:
    return "integer" if quantization == "int8" else quantization


def check_address(address: str) -> str:
    """Raises ValueError if it is no address of a worker or a registry."""
    if not re.fullmatch(r"tcp://[^/\s]+:\d{1,5}|ipc:///\S+", address):
        raise ValueError("must be tcp://HOST:PORT or ipc:///PATH")
    return address


WorkerAddress = Annotated[str, AfterValidator(check_address)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Source = Annotated[str, StringConstraints(min_length=1)]


class ModelSettings(Section):
    """The served model."""

    name: ModelName = "smollm2-135m-instruct"
    """The name of the model in requests and answers."""
    source: Source = "embedded"
    """ "embedded", a directory, a GGUF file, or a Hugging Face hub id."""
    revision: Annotated[str, StringConstraints(min_length=1)] | None = _DEFAULTS.revision
    """Branch, tag or commit of a model from the Hugging Face hub. None: the main branch."""
    chat_template: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Path of a Jinja file that is used instead of the model's own chat template."""
    rotary: Rotary | None = _DEFAULTS.rotary
    """For Pharia models only: the form of their rotary embedding. EngineConfig documents the values."""
    description: str = ""
    """Text for the lists of models."""
    workers: tuple[WorkerAddress, ...] = ()
    """Where the model's workers listen that were started with `tiller worker serve`: `tcp://HOST:PORT` or
    `ipc:///PATH`. Empty: the server starts workers itself."""
    scale: ScaleSettings = ScaleSettings()
    """The number of the model's workers in a cluster. Only `tiller cluster` reads it."""

    @property
    def chat_template_file(self) -> Path | None:
        return None if self.chat_template is None else Path(os.path.expanduser(self.chat_template))


class EngineSettings(Section):
    """The number of workers, and the fields of EngineConfig. EngineConfig documents these fields."""

    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of workers. Each has its own model, its own KV cache, and all limits below for itself."""
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = _DEFAULTS.tensor_parallel
    device: Device = _DEFAULTS.device
    dtype: DType = _DEFAULTS.dtype
    quantization: Annotated[Quantization, BeforeValidator(_accept_former_name)] = _DEFAULTS.quantization
    threads: PositiveInt | None = _DEFAULTS.threads
    context_length: PositiveInt | None = _DEFAULTS.context_length
    block_size: PositiveInt = _DEFAULTS.block_size
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = _DEFAULTS.kv_cache_gib
    kv_cache_share: Annotated[
        Annotated[float, Field(gt=0, lt=1)] | None, AfterValidator(_check_not_beside_gib)
    ] = _DEFAULTS.kv_cache_share
    max_batch_tokens: PositiveInt = _DEFAULTS.max_batch_tokens
    max_running: PositiveInt = _DEFAULTS.max_running
    max_queued: Annotated[int, Field(ge=0)] = _DEFAULTS.max_queued
    nice_ageing_seconds: Annotated[float, Field(ge=0)] = _DEFAULTS.nice_ageing_seconds
    max_step_seconds: Annotated[float, Field(ge=3)] = _DEFAULTS.max_step_seconds
    steering_blocks: (
        Annotated[
            tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_check_distinct)
        ]
        | None
    ) = _DEFAULTS.steering_blocks
    seed: int | None = _DEFAULTS.seed


class ServedModelSettings(ModelSettings):
    """One of several models."""

    name: ModelName
    """The name of the model in requests and answers."""
    source: Source
    """ "embedded", a directory, a GGUF file, or a Hugging Face hub id."""
    engine: EngineSettings = EngineSettings()
    """The workers of this model."""


_EXCLUSIVE = frozenset({"kv_cache_gib", "kv_cache_share"})


def with_defaults(model: Any, engine: Mapping[str, Any]) -> Any:
    """Fills the engine of a model, as the configuration gives it, with the fields of the common engine.

    Returns what is no mapping unchanged, so that validation can refuse it.
    """
    if not isinstance(model, Mapping) or not isinstance(model.get("engine", {}), Mapping):
        return model
    own = model.get("engine", {})
    common = {
        name: value for name, value in engine.items() if not (name in _EXCLUSIVE and _EXCLUSIVE & own.keys())
    }
    return {**model, "engine": {**common, **own}}

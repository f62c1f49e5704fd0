"""The device, dtype and threads of a process."""

import logging

import torch

from inference.interface.config import ConfigError, EngineConfig
from inference.interface.processors import allowed_processors

_log = logging.getLogger(__name__)


def choose_device(config: EngineConfig, number: int = 0) -> torch.device:
    """The device of this worker, or of process `number` of its group: they take the CUDA devices in turn.

    Raises ConfigError if "cuda" is configured and torch finds no CUDA device, if a group has more processes
    than there are devices, and if workers share a device without a configured size of the KV cache: the first
    one would take all memory.
    """
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("engine.device is cuda, but torch finds no CUDA device")
    count = torch.cuda.device_count()
    size = config.tensor_parallel
    gpus = f"this host has {count} GPU{'s' * (count > 1)}"
    if size > count:
        raise ConfigError(f"engine.tensor_parallel is {size}, but {gpus}")
    if config.device_processes > count and config.kv_cache_gib is None and config.kv_cache_share is None:
        raise ConfigError(
            f"the server has {config.device_processes} processes for GPUs, but {gpus}: set "
            "engine.kv_cache_gib or engine.kv_cache_share, so that they can share a GPU"
        )
    device = torch.device("cuda", (config.device_index + config.replica * size + number) % count)
    torch.cuda.set_device(device)
    return device


def choose_dtype(config: EngineConfig, device: torch.device) -> torch.dtype | None:
    """None: that of the weights."""
    if config.dtype == "auto":
        return None if device.type == "cuda" else torch.float32
    dtype = getattr(torch, config.dtype)
    assert isinstance(dtype, torch.dtype)  # noqa: S101 - for the type checker
    return dtype


def set_threads(config: EngineConfig) -> None:
    """The processes of a group divide the threads among them. Without a setting: those that are allowed."""
    usual, allowed = torch.get_num_threads(), allowed_processors()
    if config.threads is None and allowed < usual:
        _log.info("computing in %d threads instead of %d: a CPU limit allows no more", allowed, usual)
    threads = config.threads or min(usual, allowed)
    torch.set_num_threads(max(1, threads // config.tensor_parallel))

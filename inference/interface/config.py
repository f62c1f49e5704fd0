"""The worker's configuration, frozen. Torch-free, so that the gateway can build it."""

from typing import Literal

import msgspec

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "integer"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class ConfigError(Exception):
    """What is configured cannot be done with this model or on this machine. One line for the operator."""


class LogConfig(msgspec.Struct, frozen=True):
    """How a process logs."""

    format: LogFormat = "text"
    level: LogLevel = "info"
    """Lines of less weight are left out."""


class EngineConfig(msgspec.Struct, frozen=True):
    """What the worker needs to know before it loads a model."""

    source: str = "embedded"
    """"embedded", a directory, or a Hugging Face hub id."""
    cache_directory: str = "~/.cache/tiller"
    replica: int = 0
    """The number of this worker among those of one server, from 0; each takes a CUDA device in turn."""
    device: Device = "auto"
    """"auto": cuda where there is one, else cpu."""
    dtype: DType = "auto"
    """"auto": float32 on the CPU, the model's own dtype on CUDA."""
    quantization: Quantization = "none"
    """"integer": linear layers multiply packed integer weights by rounded activations; on the CPU only.

    Weights that came in 4 bits stay exact in 4 bits, with 8-bit activations. All others are rounded to
    8 bits, with 16-bit activations.
    """
    threads: int | None = None
    """CPU threads of one operation; None leaves the choice to torch."""
    context_length: int | None = None
    """Upper limit of prompt + completion in tokens; None: the model's own."""
    block_size: int = 16
    """Tokens in one block of the KV cache."""
    kv_cache_gib: float | None = None
    """Memory of the KV cache; None: 2 GiB on the CPU, what is free (less a tenth) on CUDA."""
    max_batch_tokens: int = 512
    """Tokens that one step may compute."""
    max_running: int = 256
    """Sequences that may run at the same time."""
    max_queued: int = 1024
    """Sequences that may wait; a request beyond that is refused."""
    nice_ageing_seconds: float = 30.0
    """A `nice` sequence yields to all others until it has waited this long."""
    max_step_seconds: float = 300.0
    """A step that lasts longer hangs, and the worker ends. Most that hang are found sooner."""
    steering_blocks: tuple[int, ...] | None = None
    """The decoder blocks, from 0, whose output is steered; None: one at 0.6 of the depth."""
    seed: int | None = None
    """Makes sampling repeatable, for tests; None: from the operating system."""
    log: LogConfig = LogConfig()

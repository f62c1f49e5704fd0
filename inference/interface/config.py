"""The worker's configuration, immutable. Imports no torch, so that the gateway can build it."""

from typing import Literal

import msgspec

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "integer"]
Rotary = Literal["interleaved", "half"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class ConfigError(Exception):
    """The configuration does not work with this model or on this machine. The message is one line."""


class LogConfig(msgspec.Struct, frozen=True):
    """Format and level of a process's log."""

    format: LogFormat = "text"
    level: LogLevel = "info"
    """The lowest level that is logged."""
    bars: bool = False
    """Draws the progress of long work as a bar on stderr, which is a terminal then."""

    model: str = ""
    """The name of the worker's model, if the server has several."""

    def without_bars(self) -> "LogConfig":
        """For a worker that starts while other processes write to the same terminal."""
        return msgspec.structs.replace(self, bars=False)


class EngineConfig(msgspec.Struct, frozen=True):
    """The settings that the worker needs before it loads a model."""

    source: str = "embedded"
    """"embedded", a directory, a GGUF file, or a Hugging Face hub id."""
    revision: str | None = None
    """Branch, tag or commit of a model from the hub. None: the main branch."""
    rotary: Rotary | None = None
    """Which pairs of a head's dimensions the rotary embedding rotates. Only for Pharia models.

    "interleaved": (0, 1), (2, 3), ...; "half": (0, n/2), (1, n/2 + 1), ... None: interleaved.
    """
    cache_directory: str = "~/.cache/tiller"
    replica: int = 0
    """Number of this worker among those of its model, from 0."""
    replicas: int = 1
    """Number of workers of this model."""
    tensor_parallel: int = 1
    """Number of processes of this worker that share its model. Each has a part of every layer, and a CUDA
    device of its own or its share of the CPU threads."""
    device_index: int = 0
    """Index of the first CUDA device of worker 0. All other processes take the next ones in turn."""
    device_processes: int = 1
    """Number of processes on CUDA devices, of all models of the server."""
    device: Device = "auto"
    """"auto": cuda if the machine has a CUDA device, else cpu."""
    dtype: DType = "auto"
    """"auto": float32 on the CPU, the model's own dtype on CUDA."""
    quantization: Quantization = "none"
    """"integer": linear layers multiply packed integer weights by rounded activations. CPU only.

    Weights that were already quantized to 4 bits keep their exact values, with 8-bit activations. All other
    weights are rounded to 8 bits, with 16-bit activations.
    """
    threads: int | None = None
    """CPU threads of one operation, of all processes together. None: those that torch chooses, or what the
    process may use if that is less."""
    context_length: int | None = None
    """Limit for prompt + completion, in tokens. None: the model's own limit."""
    block_size: int = 16
    """Tokens per block of the KV cache."""
    kv_cache_gib: float | None = None
    """Memory for the KV cache of each process, in GiB. None: kv_cache_share, if it is set. Else 2 on the CPU,
    and on CUDA what steps leave, at most 0.9 of the free memory."""
    kv_cache_share: float | None = None
    """Memory for the KV cache, as a share of the GPU's memory, from 0 to 1. Excludes `kv_cache_gib`."""
    max_batch_tokens: int = 512
    """Limit for the tokens that one step computes."""
    max_running: int = 256
    """Limit for the sequences that run at the same time."""
    max_queued: int = 1024
    """Limit for the sequences that wait. The engine refuses requests beyond it."""
    nice_ageing_seconds: float = 30.0
    """A `nice` sequence ranks as if it had arrived this much later, in seconds."""
    max_step_seconds: float = 300.0
    """Limit for one step, in seconds. The worker exits after a longer one; it detects most hangs sooner."""
    steering_blocks: tuple[int, ...] | None = None
    """Indices of the decoder blocks whose output is steered, from 0. None: each training chooses."""
    training_questions: int = 20
    """How many questions trainings ask. Directions that were trained with other numbers are not used."""
    refine_directions: bool = False
    """Whether trainings refine the directions of concepts by gradients."""
    seed: int | None = None
    """Makes sampling repeatable, for tests. None: a seed from the operating system."""
    log: LogConfig = LogConfig()


class StandingConfig(msgspec.Struct, frozen=True):
    """What a worker needs that is started on its own."""

    engine: EngineConfig
    endpoint: str
    """Where it listens for gateways: `tcp://HOST:PORT` or `ipc://PATH`."""
    version: str
    """Tiller's version."""
    model: str
    """The name of the model. Only gateways that want this one are served."""
    key_file: str | None = None
    """The file of the worker key. None: without encryption, everybody who can connect is served."""
    drain_seconds: float = 5.0
    """How long the requests go on when a signal ends the worker."""
    registry: str | None = None
    """Where the worker announces itself. None: nowhere."""
    registry_key_file: str | None = None
    """The file of the worker key, for a registry at `tcp://`."""
    advertised: str = ""
    """Where gateways reach the worker, for the registry."""

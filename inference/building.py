"""Builds an engine from its configuration."""

import logging
from pathlib import Path

import torch

from inference.backends.cpu.build import compile_ahead
from inference.engine import Engine
from inference.interface.config import EngineConfig
from inference.interface.protocol import ModelInfo
from inference.models import sources
from inference.models.end_tokens import read_end_token_ids
from inference.runner.devices import choose_device, choose_dtype, set_threads
from inference.runner.leading import leading
from inference.runner.loading import load
from inference.runner.model_runner import ModelRunner
from inference.steering.direction_files import DirectionFiles
from inference.steering.training import TRAINING_VERSION

_log = logging.getLogger("tiller.worker")


def build_engine(config: EngineConfig) -> tuple[Engine, ModelInfo]:
    """Loads the model and builds the engine. `Engine.close` ends what it has started.

    Raises ConfigError, SourceError, UnsupportedModelError, KernelError, BrokenGroupError, OSError and
    ValueError.
    """
    set_threads(config)
    device = choose_device(config)
    cache = Path(config.cache_directory).expanduser()
    if device.type == "cpu" and choose_dtype(config, device) == torch.float32:
        compile_ahead(cache)  # while the model is downloaded and converted
    directory = sources.resolve(config.source, cache, config.revision)
    _log.info("loading %s on %s", directory.name, device)
    with leading(config, directory, device) as (group, leader):
        loaded, digest, backend = load(config, directory, group)
        runner = ModelRunner(loaded, config, backend, leader)
    engine = Engine(runner, config, _direction_files(cache, digest, loaded.dtype, config))
    info = ModelInfo(
        directory=str(directory),
        context_length=engine.context_length,
        context_limit=engine.context_limit,
        vocab_size=loaded.vocab_size,
        end_token_ids=read_end_token_ids(directory),
        weights_digest=digest,
        dtype=_name(loaded.dtype),
        quantization=config.quantization,
        num_layers=len(loaded.layers),
        hidden_size=loaded.hidden_size,
    )
    return engine, info


def _direction_files(
    cache: Path, weights_digest: str, dtype: torch.dtype, config: EngineConfig
) -> DirectionFiles:
    """The cache of directions.

    Each combination of weights, dtype, configured blocks and way of training has its own. Directions are
    trained on what the model computes, which depends on the dtype, though the weights' digest does not.
    """
    rounding = [] if config.quantization == "none" else [config.quantization]
    blocks = map(str, config.steering_blocks or ())
    refined = ["refined"] if config.refine_directions else []
    name = "-".join(
        [weights_digest[:32], _name(dtype), *blocks, *rounding, f"q{config.training_questions}", *refined]
    )
    return DirectionFiles(cache / "steering" / f"v{TRAINING_VERSION}" / name)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

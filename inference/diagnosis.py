"""Finds out what a worker needs and loads no model: `tiller doctor` runs it in a process of its own.

    python -m inference.diagnosis < ENGINE_CONFIG.json

Prints a Diagnosis in JSON on stdout.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import torch

from inference.backends.backend import KernelError
from inference.backends.cpu import build
from inference.interface.config import ConfigError, EngineConfig
from inference.interface.diagnosis import Diagnosis, Gpu, ModelFiles
from inference.interface.errors import SourceError, in_one_line
from inference.models.inspection import inspect
from inference.runner.devices import choose_device

_Found = TypeVar("_Found")


def diagnose(config: EngineConfig) -> Diagnosis:
    cache = Path(config.cache_directory).expanduser()
    device, device_error = _try(lambda: choose_device(config).type, "")
    compiler, compiler_error = _try(build.check_compiler, "")
    model, model_error = _try(lambda: inspect(config.source, cache, config.revision), ModelFiles())
    no_gpus: list[Gpu] = []
    gpus, cuda_error = _try(_find_gpus, no_gpus)
    return Diagnosis(
        torch=str(torch.__version__),
        device=device,
        device_error=device_error,
        cuda=torch.version.cuda or "",
        cuda_error=cuda_error,
        gpus=gpus,
        has_kernels=build.library(cache).exists(),
        compiler=compiler,
        compiler_error=compiler_error,
        model=model,
        model_error=model_error,
    )


def _try(find: Callable[[], _Found], nothing: _Found) -> tuple[_Found, str]:
    """What `find` returns and no error, or `nothing` and the error."""
    try:
        return find(), ""
    except (ConfigError, KernelError, SourceError) as error:
        return nothing, str(error)
    except Exception as error:  # any library may fail on a machine that is not well
        return nothing, in_one_line(error)


def _find_gpus() -> list[Gpu]:
    """Raises what torch raises if CUDA does not work here."""
    torch.cuda.init()  # type: ignore[no-untyped-call]
    gpus = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        gpus.append(Gpu(torch.cuda.get_device_name(number), total, free))
    return gpus


def main() -> None:
    logging.disable()  # the diagnosis says it all
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig)
    found = msgspec.json.encode(diagnose(config))
    sys.stdout.buffer.write(found)


if __name__ == "__main__":
    main()

"""The back end for float32 models on a CPU: C++ kernels, compiled for the processor of this machine."""

from pathlib import Path

import torch
from torch import nn

from inference.backends.backend import Backend
from inference.backends.cpu import build, fusion, linear, steering
from inference.backends.cpu.levels import features_of_processor
from inference.backends.cpu.paged_attention import attend
from inference.backends.cpu.sampling import OPERATIONS


def load(cache_directory: Path) -> Backend:
    """Compiles the kernels if the cache directory does not have them yet. Raises KernelError."""
    build.load(cache_directory)
    return Backend(
        attend=attend,
        fuse=fusion.fuse,
        quantize=_quantize,
        quantized_cache_dtype=_quantized_cache_dtype(),
        sampling=OPERATIONS,
        steering=steering.OPERATIONS,
    )


def _quantized_cache_dtype() -> torch.dtype | None:
    """float16, if the processor converts it in one instruction, as those with AVX2 do."""
    return torch.float16 if "f16c" in features_of_processor() else None


def _quantize(model: nn.Module) -> None:
    """Quantizes the linear layers, fuses the modules around them, and enables the kernels' own threads."""
    linear.replace_linears(model)
    fusion.fuse(model)
    torch.ops.tiller_cpu.use_own_threads(True)

"""The back end for NVIDIA GPUs: Triton kernels and CUDA graphs. Import it only on a CUDA host."""

from pathlib import Path

import torch
from torch import nn

from inference.backends.backend import Backend
from inference.backends.cuda import fp8, fusion, kernel_cache
from inference.backends.cuda.capture import capture
from inference.backends.cuda.layers import check, steer
from inference.backends.cuda.paged_attention import attend
from inference.backends.cuda.sampling import OPERATIONS
from inference.steering.injection import SteeringOperations


def load(device: torch.device, cache_directory: Path) -> Backend:
    """Compiled kernels are kept in the cache directory.

    Raises what Triton raises if it cannot compile or run here, and ValueError if a result is wrong.
    """
    kernel_cache.use_directory(cache_directory)
    check(device)
    return Backend(
        attend=attend,
        fuse=_fuse,
        sampling=OPERATIONS,
        steering=SteeringOperations(steer=steer),
        capture=capture,
    )


def _fuse(model: nn.Module) -> None:
    fp8.accelerate(model)
    fusion.fuse(model)

"""The sampling operations of each back end, and the devices on which they run."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from inference.backends.cpu import build
from inference.backends.cpu import sampling as cpu
from inference.compute.sampling.operations import SamplingOperations
from inference.interface.config import EngineConfig


class Kernels(NamedTuple):
    operations: SamplingOperations
    device: torch.device


def load_kernels(name: str) -> Kernels:
    """`torch` and `cuda` run on the device of the tests, `cpu` always on the CPU."""
    if name == "torch":
        return Kernels(SamplingOperations(), torch.get_default_device())
    if name == "cpu":
        build.load(Path(EngineConfig().cache_directory).expanduser())
        return Kernels(cpu.OPERATIONS, torch.device("cpu"))
    pytest.importorskip("triton")
    from inference.backends.cuda import sampling as cuda

    return Kernels(cuda.OPERATIONS, torch.get_default_device())


def random_numbers(device: torch.device, *shape: int) -> torch.Tensor:
    """The same normally distributed numbers on every device."""
    generator = torch.Generator("cpu").manual_seed(shape[-1])
    return torch.randn(*shape, generator=generator, device="cpu").to(device)

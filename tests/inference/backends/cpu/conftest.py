"""All tests of this directory run on the CPU, with its kernels, whatever the default device is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from inference.backends.cpu import build
from inference.interface.config import EngineConfig


@pytest.fixture(autouse=True, scope="session")
def kernels() -> None:
    build.load(Path(EngineConfig().cache_directory).expanduser())


@pytest.fixture(autouse=True)
def cpu() -> Iterator[None]:
    with torch.device("cpu"):
        yield

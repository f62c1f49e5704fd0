"""The CPU's kernels, compiled and loaded."""

from pathlib import Path

import pytest

from inference.backends.cpu import build
from inference.interface.config import EngineConfig


@pytest.fixture(autouse=True, scope="session")
def kernels() -> None:
    build.load(Path(EngineConfig().cache_directory).expanduser())

"""Compiles and loads the CPU kernels for all tests of this directory."""

from pathlib import Path

import pytest

from inference.backends.cpu import build
from inference.interface.config import EngineConfig


@pytest.fixture(autouse=True, scope="session")
def kernels() -> None:
    build.load(Path(EngineConfig().cache_directory).expanduser())

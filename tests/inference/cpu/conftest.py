"""The CPU's kernels, compiled and loaded."""

from pathlib import Path

import pytest

from inference.config import EngineConfig
from inference.cpu import build


@pytest.fixture(autouse=True, scope="session")
def kernels() -> None:
    build.load(Path(EngineConfig().cache_directory).expanduser())

"""How many threads a worker computes in."""

import logging
from collections.abc import Iterator

import pytest
import torch

from inference.interface.config import EngineConfig
from inference.runner import devices
from inference.runner.devices import set_threads


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("config", "allowed", "expected"),
    [
        (EngineConfig(), 16, 8),
        (EngineConfig(), 2, 2),
        (EngineConfig(threads=4), 2, 4),
        (EngineConfig(tensor_parallel=2), 4, 2),
        (EngineConfig(tensor_parallel=2), 1, 1),
        (EngineConfig(threads=6, tensor_parallel=2), 2, 3),
    ],
)
def test_a_limit_of_the_container_counts_unless_threads_is_set(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    config: EngineConfig,
    allowed: int,
    expected: int,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(devices, "allowed_processors", lambda: allowed)
    set_threads(config)
    assert torch.get_num_threads() == expected
    assert bool(caplog.messages) == (config.threads is None and allowed < 8)

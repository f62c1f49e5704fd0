"""Models start side by side; one that cannot be loaded is tried again, and does not hold up the others."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from app import startup
from app.errors import EngineUnavailable, StartError
from app.gateway import Gateway
from app.main import create_app
from app.settings import Settings
from inference.interface.config import EngineConfig
from tests.app.contract.support import until
from tests.app.fakes import FakeEngine, model_info, write_model_directory


class Machine:
    """Where workers would run. Each attempt to load a model takes its next outcome; the last one stays."""

    def __init__(self, directory: Path) -> None:
        self._info = model_info(directory, write_model_directory(directory).get_vocab_size())
        self.outcomes: dict[str, list[Exception | asyncio.Event | None]] = {}
        """By the model's source. An exception fails, an event is waited for, None loads."""
        self.attempts: list[str] = []
        self.engines: dict[str, DrainableEngine] = {}
        self.stopped: list[str] = []

    @asynccontextmanager
    async def run(self, config: EngineConfig) -> AsyncIterator["DrainableEngine"]:
        self.attempts.append(config.source)
        outcomes = self.outcomes[config.source]
        outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            await outcome.wait()
        self.engines[config.source] = DrainableEngine(self._info)
        try:
            yield self.engines[config.source]
        finally:
            self.stopped.append(config.source)


class DrainableEngine(FakeEngine):
    drained: float | None = None

    def drain(self, seconds: float) -> None:
        self.drained = seconds


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path)
    monkeypatch.setattr(startup, "run_replicas", machine.run)
    monkeypatch.setattr(startup, "_FIRST_DELAY", 0.01)
    return machine


def gateway_of(*names: str) -> Gateway:
    models = [{"name": name, "source": name} for name in names]
    gateway: Gateway = create_app(
        Settings(models=models, steering={"train_at_start": False}), {}
    ).state.gateway
    return gateway


def loaded(gateway: Gateway) -> list[str]:
    return [model.name for model in gateway.models.loaded]


async def test_the_server_starts_with_the_first_model_and_the_others_follow(machine: Machine) -> None:
    ready = asyncio.Event()
    machine.outcomes = {"slow": [ready], "quick": [None]}
    gateway = gateway_of("slow", "quick")
    async with asyncio.timeout(10), startup.run_models(gateway, bars=False) as models:
        assert (loaded(gateway), models.loading) == (["quick"], ["slow"])
        with pytest.raises(EngineUnavailable):
            gateway.models.find("slow", None)
        ready.set()
        await until(lambda: not models.loading)
        assert loaded(gateway) == ["slow", "quick"]
    assert sorted(machine.stopped) == ["quick", "slow"]


async def test_a_model_that_cannot_be_loaded_is_tried_again(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.outcomes = {"good": [None], "bad": [StartError("no memory"), StartError("no memory"), None]}
    gateway = gateway_of("good", "bad")
    with caplog.at_level(logging.INFO, "app.startup"):
        async with asyncio.timeout(10), startup.run_models(gateway, bars=False) as models:
            await until(lambda: not models.loading)
    assert machine.attempts.count("bad") == 3
    assert machine.attempts.count("good") == 1
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "bad cannot be loaded: no memory. The next attempt is in 0.01 s",
        "bad cannot be loaded: no memory. The next attempt is in 0.02 s",
        "bad is loaded",
    ]


async def test_files_that_cannot_be_used_fail_only_their_model(machine: Machine, tmp_path: Path) -> None:
    machine.outcomes = {"good": [None], "bad": [None]}
    gateway = gateway_of("good", "bad")
    load = gateway.load

    def load_or_fail(settings: object, engine: object) -> object:
        if settings.name == "bad":  # type: ignore[attr-defined]
            raise StartError("the chat template has an error")
        return load(settings, engine)  # type: ignore[arg-type]

    object.__setattr__(gateway, "load", load_or_fail)
    async with asyncio.timeout(10), startup.run_models(gateway, bars=False) as models:
        await until(lambda: machine.attempts.count("bad") > 1)
        assert (loaded(gateway), models.loading) == (["good"], ["bad"])


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
async def test_a_server_without_any_model_does_not_start(machine: Machine, names: list[str]) -> None:
    machine.outcomes = {"a": [StartError("a is broken")], "b": [StartError("b is broken")]}
    with pytest.raises(StartError, match="a is broken"):
        async with asyncio.timeout(10), startup.run_models(gateway_of(*names), bars=False):
            pytest.fail("it has started")
    assert machine.attempts == names


async def test_an_unexpected_error_is_logged_with_its_traceback(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.outcomes = {"a": [ZeroDivisionError("a bug")]}
    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(10), startup.run_models(gateway_of("a"), bars=False):
            pytest.fail("it has started")
    assert any(record.exc_info for record in caplog.records)


async def test_draining_ends_loading_and_drains_the_loaded(machine: Machine) -> None:
    machine.outcomes = {"slow": [asyncio.Event()], "quick": [None]}
    gateway = gateway_of("slow", "quick")
    with suppress(asyncio.CancelledError):
        async with asyncio.timeout(10), startup.run_models(gateway, bars=False) as models:
            models.drain(3)
            assert machine.engines["quick"].drained == 3
            await asyncio.sleep(0.05)
            assert machine.stopped == []
    assert machine.stopped == ["quick"]

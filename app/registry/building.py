"""Builds a server's connection to the registry from the settings."""

from collections.abc import Callable, Mapping, Sequence

from app.errors import StartError
from app.registry.client import RegistryClient
from app.settings import Settings
from app.telemetry.observation import WorkerState
from inference.interface.config import ConfigError
from inference.interface.registry import ModelLoad
from inference.interface.worker_key import WorkerKey, read_key


def build_client(
    settings: Settings, workers: Callable[[], Mapping[str, Sequence[WorkerState]]]
) -> RegistryClient:
    """`workers`: those of each model. Raises StartError if the worker key cannot be read."""
    assert settings.registry is not None  # noqa: S101 - for the type checker: the caller has checked it

    def loads() -> dict[str, ModelLoad]:
        return {model: _load(states) for model, states in workers().items()}

    return RegistryClient(settings.registry, key_for(settings.registry, settings), loads)


def key_for(address: str, settings: Settings) -> WorkerKey | None:
    """The worker key for an address at `tcp://`, None for others. Raises StartError if it cannot be read."""
    return read_worker_key(settings) if address.startswith("tcp:") else None


def read_worker_key(settings: Settings) -> WorkerKey | None:
    """None if there is none. Raises StartError if it cannot be read."""
    try:
        return read_key(settings.worker_key_file) if settings.worker_key_file else None
    except ConfigError as error:
        raise StartError(str(error)) from None


def _load(workers: Sequence[WorkerState]) -> ModelLoad:
    up = [worker for worker in workers if worker.up]
    return ModelLoad(
        sum(worker.stats.running for worker in up), sum(worker.stats.waiting for worker in up), len(up)
    )

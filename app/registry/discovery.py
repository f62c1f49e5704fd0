"""Uses the workers of a model that the registry knows."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from app.registry.client import RegistryClient
from app.registry.shared_directions import SharedDirections
from app.workers.replicas import RunningEngine
from app.workers.starting import StandingWorkers
from inference.interface.worker_key import WorkerKey


@asynccontextmanager
async def registered_workers(
    client: RegistryClient, model: str, always: Collection[str], key: WorkerKey | None, cache: Path
) -> AsyncIterator[RunningEngine]:
    """Yields once the registry has answered, and a worker of the model serves.

    `model`: its name. `always`: addresses of other workers. `key` and `cache`: see connect_workers.
    """
    async with StandingWorkers(model, key, cache, SharedDirections(client)).running() as workers:
        await client.has_joined.wait()
        workers.follow(always)
        with client.following(model, lambda addresses: workers.follow({*always, *addresses})):
            await workers.engine.wait_available()
            yield workers.engine

"""Starts the models of a server side by side, and starts those again that cannot be loaded."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from anyio import to_thread

from app.errors import StartError
from app.gateway import Gateway
from app.registry.building import read_worker_key
from app.registry.discovery import registered_workers
from app.settings import ServedModelSettings
from app.workers.replicas import RunningEngine
from app.workers.starting import connect_workers, run_replicas

_log = logging.getLogger(__name__)

_FIRST_DELAY, _LONGEST_DELAY = 10.0, 600.0
"""Seconds before a model that cannot be loaded is tried again. The delay doubles each time."""


@asynccontextmanager
async def run_models(gateway: Gateway, bars: bool) -> AsyncIterator["RunningModels"]:
    """Starts all models. Yields once the first one is loaded; the others follow on their own.

    `bars`: a single model draws progress bars. Raises StartError if no model can be loaded.
    """
    models = RunningModels(gateway, bars)
    registry = asyncio.create_task(gateway.registry.run()) if gateway.registry else None
    try:
        await models.start()
        yield models
    finally:
        await models.stop()
        if registry is not None:
            registry.cancel()
            await asyncio.gather(registry, return_exceptions=True)


class RunningModels:
    def __init__(self, gateway: Gateway, bars: bool) -> None:
        served = gateway.settings.served_models
        self._models = [_RunningModel(gateway, model, bars and len(served) == 1) for model in served]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Returns once one model is loaded. Raises the error of the first one if none can be loaded."""
        alone = len(self._models) == 1
        self._tasks = [asyncio.create_task(model.run(again=not alone)) for model in self._models]
        attempts = [model.attempted for model in self._models]
        for attempt in asyncio.as_completed(attempts):
            if await attempt is None:
                return
        errors = [await attempt for attempt in attempts]
        raise errors[0] or StartError("no model is loaded")

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drain(self, seconds: float) -> None:
        """Refuses new requests from now on. Ends the current ones after `seconds`. Ends loading."""
        for model, task in zip(self._models, self._tasks, strict=True):
            if model.engine is None:
                task.cancel()
            else:
                model.engine.drain(seconds)

    @property
    def loading(self) -> list[str]:
        """The names of the models that are not loaded yet."""
        return [model.name for model in self._models if model.engine is None]


class _RunningModel:
    """One model: its workers, from their start until the server ends."""

    def __init__(self, gateway: Gateway, settings: ServedModelSettings, bars: bool) -> None:
        self._gateway = gateway
        self._settings = settings
        self._bars = bars
        self.engine: RunningEngine | None = None
        """None: the model is not loaded."""
        self.attempted: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        """Done after the first attempt to load the model, with its error if it has failed."""

    @property
    def name(self) -> str:
        return self._settings.name

    async def run(self, again: bool) -> None:
        """Loads the model and keeps it. `again`: tries again if that fails, until it succeeds."""
        delay = _FIRST_DELAY
        while True:
            error = await self._serve()
            if not self.attempted.done():
                self.attempted.set_result(error)
            if not again:
                return
            facts = {"model": self.name, "reason": str(error), "delay": delay}
            _log.error("%(model)s cannot be loaded: %(reason)s. The next attempt is in %(delay)g s", facts)
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    async def _serve(self) -> Exception | None:
        """Returns the error if the model cannot be loaded. Else it serves until it is cancelled."""
        try:
            async with self._workers() as engine:
                model = await to_thread.run_sync(self._gateway.load, self._settings, engine)
                self._gateway.add(model)
                self.engine = engine
                train = self._gateway.settings.steering.train_at_start
                self._gateway.concepts.prepare(model.steering, train)
                if self.attempted.done():
                    _log.info("%(model)s is loaded", {"model": self.name})
                else:
                    self.attempted.set_result(None)
                await asyncio.Event().wait()
        except Exception as error:
            if not isinstance(error, StartError):
                _log.exception("%(model)s cannot be loaded", {"model": self.name})
            return error
        return None

    def _workers(self) -> AbstractAsyncContextManager[RunningEngine]:
        """Those that run already, or new ones."""
        settings, addresses = self._gateway.settings, self._settings.workers
        registry = self._gateway.registry
        if registry is None and not addresses:
            return run_replicas(settings.engine_config(self._settings, bars=self._bars))
        key = read_worker_key(settings)
        if registry is None:
            return connect_workers(self.name, addresses, key, settings.cache)
        return registered_workers(registry, self.name, addresses, key, settings.cache)

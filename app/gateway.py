"""The objects that the routes use. create_app builds them once."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app import __version__
from app.concepts.concepts import Concepts
from app.limits.admission import AdmissionController
from app.models.loading import load_model
from app.models.model import Model
from app.models.models import Models
from app.registry.client import RegistryClient
from app.settings import ServedModelSettings, Settings
from app.telemetry.metrics import Metrics
from app.workers.engine import Engine


@dataclass(frozen=True)
class Gateway:
    settings: Settings
    models: Models
    admission: AdmissionController
    concepts: Concepts
    metrics: Metrics
    registry: RegistryClient | None = None
    """What this server shares with others. None: it is alone."""

    def load(self, settings: ServedModelSettings, engine: Engine) -> Model:
        """Builds a model for an engine that has started. Changes nothing. Can take seconds. Thread-safe.

        Raises StartError if the model's tokenizer or chat template cannot be used.
        """
        return load_model(self.settings, settings, engine, self.metrics)

    def add(self, model: Model) -> None:
        """Makes a model available."""
        self.metrics.describe(__version__, model.name, model.engine.model.dtype)
        self.concepts.add_model(model.steering)
        self.models.add(model)


# `async`, because FastAPI would run a plain function in a thread, which costs more than most routes.
async def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(_gateway)]

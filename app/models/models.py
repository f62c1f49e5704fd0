"""All served models by name. Knows which of them a caller may use."""

from collections.abc import Sequence

from app.concepts.concept import Concept
from app.errors import ApiError, EngineUnavailable, ErrorCode, shorten
from app.models.model import Model
from app.settings import AccessToken
from app.telemetry.observation import WorkerState
from app.workers.engine import Engine


class Models:
    """The models of the configuration. Each is here for use once it is loaded, and stays."""

    def __init__(self, names: Sequence[str]) -> None:
        """`names`: those of all configured models. The first one that is loaded is the default."""
        self._names = tuple(names)
        self._loaded: dict[str, Model] = {}

    def add(self, model: Model) -> None:
        """Makes a loaded model available."""
        self._loaded[model.name] = model

    @property
    def loaded(self) -> list[Model]:
        """In the order of the configuration."""
        return [self._loaded[name] for name in self._names if name in self._loaded]

    @property
    def engines(self) -> list[Engine]:
        return [model.engine for model in self._loaded.values()]

    @property
    def workers(self) -> dict[str, Sequence[WorkerState]]:
        """The workers of each model. A model that is not loaded has a single one that is down."""
        down = [WorkerState(up=False)]
        return {
            name: self._loaded[name].engine.workers if name in self._loaded else down for name in self._names
        }

    def find(self, name: str, caller: AccessToken | None, param: str | None = "model") -> Model:
        """The model with this name. `param`: the field of the request that names it. None: its path does.

        Raises UNKNOWN_MODEL, also if the caller may not use it; UNAVAILABLE if it is not loaded.
        """
        if name not in self._names or not _permits(caller, name):
            message = f"model {shorten(name)} is unknown; GET /models lists {self._known}"
            raise ApiError(ErrorCode.UNKNOWN_MODEL, message, param)
        if name not in self._loaded:
            raise EngineUnavailable(f"model {name} is not loaded; try again later")
        return self._loaded[name]

    def permitted(self, caller: AccessToken | None) -> list[Model]:
        """The loaded models that the caller may use."""
        return [model for model in self.loaded if _permits(caller, model.name)]

    def chosen(self, name: str | None, caller: AccessToken | None) -> list[Model]:
        """The model with this name, or all that the caller may use if it is None. At least one.

        Raises UNKNOWN_MODEL, or UNAVAILABLE if it is not loaded, or none is.
        """
        if name is not None:
            return [self.find(name, caller)]
        if permitted := self.permitted(caller):
            return permitted
        raise EngineUnavailable("no model is loaded that this access token permits; try again later")

    def check_loaded(self, caller: AccessToken | None) -> None:
        """Raises UNAVAILABLE if one of the models that the caller may use is not loaded."""
        for name in self._names:
            if _permits(caller, name):
                self.find(name, caller)

    def for_concept(self, concept: Concept, name: str | None, caller: AccessToken | None) -> Model:
        """The model with this name. If it is None: the first one that accepts the concept, else the first.

        Raises the errors of `chosen`.
        """
        chosen = self.chosen(name, caller)
        return next((model for model in chosen if model.steering.trainings.accepts(concept)), chosen[0])

    @property
    def _known(self) -> str:
        return "the served model" if len(self._names) == 1 else "the models that you may use"


def _permits(caller: AccessToken | None, model: str) -> bool:
    return caller is None or caller.models is None or model in caller.models

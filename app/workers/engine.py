"""The Engine protocol that routes use: requests in, token events out; examples in, a trained concept."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from app.telemetry.observation import WorkerState
from inference.interface.protocol import (
    GenerationRequest,
    ModelInfo,
    TokenEvent,
    TrainConcept,
    TrainingUpdate,
)


class Generation(Protocol):
    """An admitted request. Iterating yields, per engine step, the events that step brought it.

    The iteration ends after the terminal event of every choice that was not aborted; it raises
    EngineUnavailable when the engine is lost and InternalError when this request failed in it.
    """

    begun: "asyncio.Future[None]"
    """Done once it has brought its first events; raises what ended it before."""
    queue_seconds: float | None
    """How long it has waited until the engine began with it; None: the engine has not."""

    def __aiter__(self) -> AsyncIterator[list[TokenEvent]]: ...

    def abort(self, index: int | None = None) -> None:
        """Ends choice `index`, or all of them. Harmless when they have ended already."""


class Engine(Protocol):
    @property
    def model(self) -> ModelInfo: ...

    @property
    def available(self) -> bool:
        """Whether requests are served now."""

    @property
    def workers(self) -> Sequence[WorkerState]:
        """As they were lately."""

    @property
    def room(self) -> int:
        """How many more choices may run or wait."""

    async def wait_available(self) -> None:
        """Returns once requests are served; raises EngineUnavailable if they never will be again."""

    async def submit(self, request: GenerationRequest) -> Generation:
        """Returns once the engine has admitted the request, which takes room from the call on.

        Raises an ApiError if it was refused, EngineUnavailable if the engine is down.
        """

    def train(self, command: TrainConcept) -> AsyncIterator[TrainingUpdate]:
        """How the training goes, up to the update that is READY or FAILED.

        One at a time for each concept. Raises EngineUnavailable, at once or when the engine is lost.
        """

    def prioritize(self, concept: str) -> None:
        """Somebody waits now for a concept whose training is in the background."""

    def forget(self, concept: str) -> None:
        """Drops a trained concept; a training of it that goes on ends with a FAILED update."""

"""The Engine protocol that the routes use to generate tokens and to train concepts. Knows no worker."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from app.telemetry.observation import WorkerState
from inference.interface.concepts import TrainConcept, TrainingUpdate, VectorsResult
from inference.interface.protocol import ModelInfo
from inference.interface.requests import GenerationRequest, TokenEvent


class Generation(Protocol):
    """An admitted request. Iterating yields one list of events for each engine step.

    The iteration ends after the terminal event of every choice that was not aborted. It raises
    EngineUnavailable if the engine is lost, and InternalError if this request fails in the engine.
    """

    first_events: "asyncio.Future[None]"
    """Done once the first events have arrived. Raises the error if the request fails before that."""
    queue_seconds: float | None
    """Seconds in the engine's queue until the first choice started. None: no choice has started."""
    clipped: dict[str, float]
    """The strengths that the engine reduced to what the concepts allow: digest -> strength that is used."""

    def __aiter__(self) -> AsyncIterator[list[TokenEvent]]: ...

    def abort(self, index: int | None = None) -> None:
        """Ends choice `index`, or all choices. Does nothing for choices that have already ended."""


class Engine(Protocol):
    @property
    def model(self) -> ModelInfo: ...

    @property
    def available(self) -> bool:
        """Whether the engine accepts requests now."""

    @property
    def workers(self) -> Sequence[WorkerState]:
        """The latest known state of each worker."""

    @property
    def capacity(self) -> int:
        """The largest number of choices that a request can have, at any time."""

    @property
    def free_capacity(self) -> int:
        """How many more choices the engine can take, to run or to wait."""

    async def wait_available(self) -> None:
        """Returns once the engine accepts requests; raises EngineUnavailable if it never will again."""

    async def submit(self, request: GenerationRequest) -> Generation:
        """Returns once the engine has admitted the request. The call itself already reduces `free_capacity`.

        Raises an ApiError if the engine refuses the request, EngineUnavailable if the engine is down.
        """

    def train(self, command: TrainConcept) -> AsyncIterator[TrainingUpdate]:
        """Trains a concept. Yields its progress; the last update is READY or FAILED.

        Each concept can have one training at a time. Raises EngineUnavailable if the engine is down or is
        lost during the training.
        """

    def prioritize(self, concept: str) -> None:
        """Takes a concept's training out of the background, because a request waits for it."""

    def forget(self, concept: str) -> None:
        """Drops a concept. If it is still in training, the training ends with a FAILED update."""

    async def export(self, concept: str) -> VectorsResult:
        """The vectors of a trained concept.

        Raises UNKNOWN_STEERING_CONCEPT if the engine does not know it, EngineUnavailable if the engine is
        down or is lost meanwhile.
        """

    async def read(self, concept: str, prompts: list[list[int]], texts: list[list[int]]) -> list[list[float]]:
        """How strongly a trained concept is present at each token of each text. `prompts` precede the texts.

        If the call is cancelled, the engine ends the reading. Raises the same errors as `export`, QUEUE_FULL
        if too many readings are in progress, and INVALID_REQUEST if the engine cannot read the texts.
        """

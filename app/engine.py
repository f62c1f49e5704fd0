"""The Engine protocol that routes use: requests in, token events out."""

from collections.abc import AsyncIterator
from typing import Protocol

from inference.protocol import GenerationRequest, ModelInfo, TokenEvent


class Generation(Protocol):
    """An admitted request. Iterating yields, per engine step, the events that step brought it.

    The iteration ends after the terminal event of every choice that was not aborted; it raises
    EngineUnavailable when the engine is lost and InternalError when this request failed in it.
    """

    def __aiter__(self) -> AsyncIterator[list[TokenEvent]]: ...

    def abort(self, index: int | None = None) -> None:
        """Ends choice `index`, or all of them. Harmless when they have ended already."""


class Engine(Protocol):
    @property
    def model(self) -> ModelInfo: ...

    @property
    def available(self) -> bool:
        """Whether requests are served now."""

    async def submit(self, request: GenerationRequest) -> Generation:
        """Returns once the engine has admitted the request.

        Raises an ApiError if it was refused, EngineUnavailable if the engine is down.
        """

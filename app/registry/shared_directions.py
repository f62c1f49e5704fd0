"""Keeps the directions of trained concepts in the registry."""

from app import __version__
from app.errors import ApiError
from app.registry.client import RegistryClient
from inference.interface.concepts import DirectionResult, TakeDirection
from inference.interface.protocol import ModelInfo
from inference.interface.registry import Direction, GetDirection, PutDirection


class SharedDirections:
    """Implements app.workers.replicas.DirectionArchive."""

    def __init__(self, client: RegistryClient) -> None:
        self._client = client

    async def get(self, model: ModelInfo, concept: str) -> TakeDirection | None:
        key = _key(model)
        try:
            answer = await self._client.ask(lambda number: GetDirection(number, key, concept))
        except ApiError:
            return None
        if not isinstance(answer, Direction) or answer.content is None:
            return None
        return TakeDirection(concept, answer.content, answer.calibration)

    async def put(self, model: ModelInfo, concept: str, direction: DirectionResult) -> None:
        if direction.content is not None:
            message = PutDirection(_key(model), concept, direction.content, direction.calibration)
            self._client.tell(message)


def _key(model: ModelInfo) -> str:
    """What a direction depends on: the weights, how they are computed with, and the training."""
    return " ".join((model.weights_digest, model.dtype, model.quantization, __version__))

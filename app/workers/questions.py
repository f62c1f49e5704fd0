"""Commands to a worker that have exactly one answer: vectors, directions, readings. Knows no sockets."""

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

from app.errors import ApiError, EngineUnavailable, ErrorCode, InternalError, InvalidRequest, QueueFull
from inference.interface import protocol
from inference.interface.concepts import (
    DirectionResult,
    ExportVectors,
    ReadingsResult,
    ReadTexts,
    SendDirection,
    VectorsResult,
)
from inference.interface.protocol import StepReport
from inference.interface.requests import Abort

_MAX_READINGS = 64
"""Readings in progress in one worker."""


class Questions:
    """The questions to a worker that it has not answered yet."""

    def __init__(self, send: Callable[[protocol.Command], None]) -> None:
        self._send = send
        self._exports: dict[str, asyncio.Future[VectorsResult]] = {}
        self._directions: dict[str, asyncio.Future[DirectionResult]] = {}
        self._readings: dict[str, asyncio.Future[ReadingsResult]] = {}

    @property
    def num_readings(self) -> int:
        """How many readings are in progress."""
        return len(self._readings)

    async def export(self, concept: str) -> VectorsResult:
        """See app.workers.engine.Engine."""
        command = ExportVectors(uuid.uuid4().hex, concept)
        answer: asyncio.Future[VectorsResult] = asyncio.get_running_loop().create_future()
        self._exports[command.request_id] = answer
        try:
            self._send(command)
            result = await answer
        finally:
            del self._exports[command.request_id]
        if result.vectors is None:
            raise _unknown(concept)
        return result

    async def direction(self, concept: str) -> DirectionResult:
        """The concept's direction, for another worker. Raises EngineUnavailable."""
        command = SendDirection(uuid.uuid4().hex, concept)
        answer: asyncio.Future[DirectionResult] = asyncio.get_running_loop().create_future()
        self._directions[command.request_id] = answer
        try:
            self._send(command)
            return await answer
        finally:
            del self._directions[command.request_id]

    async def read(self, concept: str, prompts: list[list[int]], texts: list[list[int]]) -> list[list[float]]:
        """See app.workers.engine.Engine. If it is cancelled, the worker ends the reading."""
        if len(self._readings) >= _MAX_READINGS:
            raise QueueFull(f"{_MAX_READINGS} readings are in progress, which is the limit; try again later")
        command = ReadTexts(uuid.uuid4().hex, concept, prompts, texts)
        answer: asyncio.Future[ReadingsResult] = asyncio.get_running_loop().create_future()
        self._readings[command.request_id] = answer
        try:
            self._send(command)
            result = await answer
        finally:
            if answer.cancelled():  # and not already there
                self._send(Abort(command.request_id))
            del self._readings[command.request_id]
        if result.failed:
            raise InternalError(result.detail)
        if result.readings is None:
            raise InvalidRequest(result.detail) if result.detail else _unknown(concept)
        return result.readings

    def dispatch(self, report: StepReport) -> None:
        """Gives each answer to its caller. A caller may have stopped waiting."""
        for vectors in report.vectors:
            if (waiting := self._exports.get(vectors.request_id)) and not waiting.done():
                waiting.set_result(vectors)
        for direction in report.directions:
            if (taker := self._directions.get(direction.request_id)) and not taker.done():
                taker.set_result(direction)
        for readings in report.readings:
            if (reader := self._readings.get(readings.request_id)) and not reader.done():
                reader.set_result(readings)

    def fail_all(self) -> None:
        """Raises EngineUnavailable in all callers."""
        waiting: list[asyncio.Future[Any]]
        waiting = [*self._exports.values(), *self._directions.values(), *self._readings.values()]
        for answer in waiting:
            if not answer.done():
                answer.set_exception(EngineUnavailable())


def _unknown(concept: str) -> ApiError:
    return ApiError(ErrorCode.UNKNOWN_STEERING_CONCEPT, f"no such steering concept: {concept}")

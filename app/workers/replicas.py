"""Several workers as one engine: each request goes to one of them. Knows no messages and no processes."""

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

import msgspec

from app.errors import ApiError, EngineUnavailable, ErrorCode
from app.telemetry.observation import WorkerState
from app.workers.engine import Engine, Generation
from app.workers.supervisor import supervise
from inference.interface.config import EngineConfig
from inference.interface.protocol import GenerationRequest, ModelInfo, TrainConcept, TrainingUpdate

_CHUNK = 64
"""Tokens. So many in common with an earlier prompt, and the worker that has read that one is preferred."""
_MAX_CHUNKS = 64
_MAX_AHEAD = 4
"""Requests that a preferred worker may have more than the one that has least."""

# What another worker may still say yes to.
_NOT_HERE = {ErrorCode.UNAVAILABLE, ErrorCode.QUEUE_FULL, ErrorCode.UNKNOWN_STEERING_CONCEPT}


class Replica(Engine, Protocol):
    @property
    def load(self) -> int:
        """How many requests it has open."""

    def drain(self, seconds: float) -> None:
        """Takes no more requests from now on; those that run may go on for so long."""


@asynccontextmanager
async def run_replicas(config: EngineConfig, count: int) -> AsyncIterator[Replica]:
    """`count` workers that have loaded the same model. Raises StartError if one of them cannot start."""
    if count > 1 and config.threads is None:
        threads = max(1, (os.cpu_count() or 1) // count)
        config = msgspec.structs.replace(config, threads=threads)
    async with AsyncExitStack() as stack:
        # The first one alone: it may have to fetch the model.
        first = await stack.enter_async_context(supervise(config))
        same = msgspec.structs.replace(config, source=first.model.directory)
        others = [supervise(msgspec.structs.replace(same, replica=number)) for number in range(1, count)]
        try:
            async with asyncio.TaskGroup() as group:
                starting = [group.create_task(stack.enter_async_context(other)) for other in others]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        yield Replicas([first, *(task.result() for task in starting)]) if others else first


class Replicas:
    """Implements app.engine.Engine.

    A request goes to the worker with the least to do, or to one that has read the beginning of its prompt if
    that has little more. One that is down gets none. A concept is trained by one worker; the others find its
    direction on the disk when a request names it, and until then those requests go to the one that has it.
    """

    def __init__(self, replicas: Sequence[Replica], max_remembered: int = 100_000) -> None:
        """`max_remembered`: beginnings of prompts, of which the reader is known."""
        self._max_remembered = max_remembered
        self._replicas = list(replicas)
        self._read: OrderedDict[int, int] = OrderedDict()
        """By the hash of a prompt's beginning: the replica that has read it last."""

    @property
    def model(self) -> ModelInfo:
        """The context is the shortest of all, since a request may come to any."""
        shortest = min(replica.model.context_length for replica in self._replicas)
        return msgspec.structs.replace(self._replicas[0].model, context_length=shortest)

    @property
    def available(self) -> bool:
        return any(replica.available for replica in self._replicas)

    @property
    def room(self) -> int:
        """Of those that are there; where none is, no request fails for want of room."""
        available = [replica for replica in self._replicas if replica.available]
        return sum(replica.room for replica in available or self._replicas)

    @property
    def workers(self) -> Sequence[WorkerState]:
        return [worker for replica in self._replicas for worker in replica.workers]

    @property
    def load(self) -> int:
        return sum(replica.load for replica in self._replicas)

    async def wait_available(self) -> None:
        waiting = [asyncio.ensure_future(replica.wait_available()) for replica in self._replicas]
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            faults = [task.exception() for task in done]
            if all(faults):
                raise EngineUnavailable
        finally:
            for task in waiting:
                task.cancel()

    async def submit(self, request: GenerationRequest) -> Generation:
        """Nothing of a request that was not admitted has happened, so another worker may be asked."""
        beginnings = list(_beginnings(request.prompt_token_ids))
        refusal: ApiError = EngineUnavailable()
        for number in self._in_order(beginnings):
            try:
                generation = await self._replicas[number].submit(request)
            except ApiError as error:
                if error.code not in _NOT_HERE:
                    raise
                refusal = error
            else:
                self._remember(beginnings, number)
                return generation
        raise refusal

    def train(self, command: TrainConcept) -> AsyncIterator[TrainingUpdate]:
        replica = next((replica for replica in self._replicas if replica.available), None)
        if replica is None:
            raise EngineUnavailable
        return replica.train(command)

    def prioritize(self, concept: str) -> None:
        for replica in self._replicas:
            replica.prioritize(concept)

    def forget(self, concept: str) -> None:
        for replica in self._replicas:
            replica.forget(concept)

    def drain(self, seconds: float) -> None:
        for replica in self._replicas:
            replica.drain(seconds)

    def _in_order(self, beginnings: list[int]) -> list[int]:
        """The available replicas, the one to ask first at the front."""
        loads = {n: replica.load for n, replica in enumerate(self._replicas) if replica.available}
        ordered = sorted(loads, key=loads.__getitem__)
        readers = (self._read[beginning] for beginning in reversed(beginnings) if beginning in self._read)
        reader = next(readers, None)
        if reader in loads and loads[reader] <= loads[ordered[0]] + _MAX_AHEAD:
            ordered.remove(reader)
            ordered.insert(0, reader)
        return ordered

    def _remember(self, beginnings: list[int], number: int) -> None:
        for beginning in beginnings:
            self._read[beginning] = number
            self._read.move_to_end(beginning)
        while len(self._read) > self._max_remembered:
            self._read.popitem(last=False)


def _beginnings(prompt: list[int]) -> Iterator[int]:
    """Hashes of the prompt's first chunk, its first two chunks, and so on."""
    beginning = 0
    for end in range(_CHUNK, min(len(prompt), _CHUNK * _MAX_CHUNKS) + 1, _CHUNK):
        beginning = hash((beginning, tuple(prompt[end - _CHUNK : end])))
        yield beginning

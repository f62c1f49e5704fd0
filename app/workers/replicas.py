"""Combines several workers into one engine and routes requests. Knows no sockets and no processes."""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Protocol, TypeVar

import msgspec

from app.errors import ApiError, EngineUnavailable, ErrorCode
from app.telemetry.observation import WorkerState
from app.workers.engine import Engine, Generation
from inference.interface.concepts import (
    DirectionResult,
    TakeDirection,
    TrainConcept,
    TrainingState,
    TrainingUpdate,
    VectorsResult,
)
from inference.interface.protocol import ModelInfo
from inference.interface.requests import GenerationRequest

Answer = TypeVar("Answer")

_SPAN = 64
"""Number of tokens. Only prompt prefixes whose length is a multiple of it are compared."""
_MAX_SPANS = 64
"""Maximum number of spans of a prompt prefix that is compared."""
_MAX_AHEAD = 4
"""How many more requests a worker that has computed a prefix may have than the least loaded worker."""

# After these refusals another worker may still admit the request.
_TRY_ANOTHER = {ErrorCode.UNAVAILABLE, ErrorCode.QUEUE_FULL, ErrorCode.UNKNOWN_STEERING_CONCEPT}


class RunningEngine(Engine, Protocol):
    """One or several workers."""

    def drain(self, seconds: float) -> None:
        """Refuses new requests and trainings from now on. Ends the current ones after `seconds`."""


class Replica(RunningEngine, Protocol):
    """The engine of one worker."""

    @property
    def name(self) -> str:
        """The same in all servers that use the worker."""

    @property
    def started(self) -> bool:
        """Whether a worker has served, so that the model is known."""

    @property
    def load(self) -> int:
        """How many requests and readings of texts are in progress."""

    async def direction(self, concept: str) -> DirectionResult:
        """The direction of a concept, for another worker. It has none if this worker does not know it.

        Raises EngineUnavailable.
        """

    def take_direction(self, command: TakeDirection) -> None:
        """Gives the worker a direction that another one has trained. Has no effect if it is down."""


class DirectionArchive(Protocol):
    """Keeps the directions of trained concepts for workers that have lost them."""

    async def get(self, model: ModelInfo, concept: str) -> TakeDirection | None:
        """The direction of a concept on a model. None if the archive has none, or cannot be reached."""

    async def put(self, model: ModelInfo, concept: str, direction: DirectionResult) -> None:
        """Has no effect if the archive cannot be reached."""


class Replicas:
    """Implements app.workers.engine.Engine.

    A request goes to the worker that has computed the longest prefix of its prompt, unless this worker has
    many more requests than the least loaded worker. In that case, or if no worker has computed a prefix, the
    request goes to the least loaded worker. Workers that are down get no requests. One worker trains a
    concept; all servers choose the same one. The others load its direction from the cache directory when a
    request names the concept. A worker that finds none there refuses the request. Then it gets the direction
    from a worker that has it, or from the archive.
    """

    def __init__(
        self,
        replicas: Iterable[Replica] = (),
        archive: DirectionArchive | None = None,
        max_remembered: int = 100_000,
    ) -> None:
        """`max_remembered`: how many prompt prefixes to remember with their worker."""
        self._max_remembered = max_remembered
        self._archive = archive
        self._numbers = itertools.count()
        self._by_number: dict[int, Replica] = {}
        self._last_model: ModelInfo | None = None
        self._draining = False
        self._grown = asyncio.Event()
        """Set, and replaced, when there is another replica."""
        self._readers: OrderedDict[int, int] = OrderedDict()
        """Hash of a prompt prefix -> number of the replica that has computed it most recently."""
        for replica in replicas:
            self.add(replica)

    def add(self, replica: Replica) -> int:
        """Uses another worker. Returns the number with which `remove` ends this."""
        number = next(self._numbers)
        self._by_number[number] = replica
        self._announce()
        return number

    def remove(self, number: int) -> None:
        """Asks a worker nothing more. Its current requests are not affected."""
        if self._by_number[number].started:
            self._last_model = self.model
        del self._by_number[number]

    @property
    def _replicas(self) -> list[Replica]:
        return list(self._by_number.values())

    @property
    def model(self) -> ModelInfo:
        """The model, with the shortest context length of all replicas: any of them may get a request.

        The last one that was known, if there are no replicas. One must have started before.
        """
        models = [replica.model for replica in self._replicas if replica.started]
        if not models:
            assert self._last_model is not None  # noqa: S101 - for the type checker: see above
            return self._last_model
        shortest = min(models, key=lambda model: model.context_length)
        return msgspec.structs.replace(
            models[0], context_length=shortest.context_length, context_limit=shortest.context_limit
        )

    @property
    def available(self) -> bool:
        return not self._draining and any(replica.available for replica in self._replicas)

    @property
    def capacity(self) -> int:
        """That of the largest replica, because one replica takes all choices of a request."""
        return max((replica.capacity for replica in self._replicas), default=0)

    @property
    def free_capacity(self) -> int:
        """The sum over the available replicas, or over all replicas if all are down."""
        available = [replica for replica in self._replicas if replica.available]
        return sum(replica.free_capacity for replica in available or self._replicas)

    @property
    def workers(self) -> Sequence[WorkerState]:
        """A single one that is down, if there are none."""
        found = [worker for replica in self._replicas for worker in replica.workers]
        return found or [WorkerState(up=False)]

    async def wait_available(self) -> None:
        while not await self._wait_for_one():
            pass

    async def _wait_for_one(self) -> bool:
        """Returns whether a replica is available. False: there is another replica, so wait again."""
        if self._draining:
            raise EngineUnavailable
        waiting = [asyncio.ensure_future(replica.wait_available()) for replica in self._replicas]
        grown = asyncio.ensure_future(self._grown.wait())
        try:
            done, _ = await asyncio.wait({*waiting, grown}, return_when=asyncio.FIRST_COMPLETED)
            faults = [task.exception() for task in done - {grown}]
            if faults and all(faults):
                raise EngineUnavailable
            return bool(faults)
        finally:
            for task in (*waiting, grown):
                task.cancel()

    def _announce(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    async def submit(self, request: GenerationRequest) -> Generation:
        """Tries the replicas in order. A refused request has had no effect, so the next one may take it."""
        prefixes = list(_prefix_hashes(request.prompt_token_ids))
        refusal: ApiError = EngineUnavailable()
        for number, replica in self._in_order(prefixes):
            try:
                generation = await self._submit_to(replica, request)
            except ApiError as error:
                if error.code not in _TRY_ANOTHER:
                    raise
                refusal = error
            else:
                self._remember(prefixes, number)
                return generation
        raise refusal

    async def _submit_to(self, replica: Replica, request: GenerationRequest) -> Generation:
        try:
            return await replica.submit(request)
        except ApiError as error:
            if error.code is not ErrorCode.UNKNOWN_STEERING_CONCEPT:
                raise
            if not any([await self._bring(replica, concept) for concept in request.concepts]):
                raise
        return await replica.submit(request)

    async def _bring(self, replica: Replica, concept: str) -> bool:
        """Gives a worker a direction that another one or the archive has. Returns whether there is one."""
        for other in self._replicas:
            if other is not replica and other.available:
                with suppress(EngineUnavailable):
                    result = await other.direction(concept)
                    if result.content is not None:
                        replica.take_direction(TakeDirection(concept, result.content, result.calibration))
                        return True
        archived = await self._archive.get(self.model, concept) if self._archive else None
        if archived is not None:
            replica.take_direction(archived)
        return archived is not None

    async def train(self, command: TrainConcept) -> AsyncIterator[TrainingUpdate]:
        replica = self._trainer(command.concept)
        await self._bring(replica, command.concept)
        async for update in replica.train(command):
            yield update
            if update.state is TrainingState.READY and self._archive:
                with suppress(EngineUnavailable):
                    direction = await replica.direction(command.concept)
                    await self._archive.put(self.model, command.concept, direction)

    def _trainer(self, concept: str) -> Replica:
        """The available worker that trains a concept. Raises EngineUnavailable if there is none.

        Servers that share workers choose the same one, without asking each other: rendezvous hashing.
        """
        available = [replica for replica in self._replicas if replica.available]
        if not available:
            raise EngineUnavailable
        return max(available, key=lambda replica: sha256(f"{concept} {replica.name}".encode()).digest())

    def prioritize(self, concept: str) -> None:
        for replica in self._replicas:
            replica.prioritize(concept)

    def forget(self, concept: str) -> None:
        for replica in self._replicas:
            replica.forget(concept)

    async def export(self, concept: str) -> VectorsResult:
        return await self._ask_any(lambda replica: replica.export(concept))

    async def read(self, concept: str, prompts: list[list[int]], texts: list[list[int]]) -> list[list[float]]:
        return await self._ask_any(lambda replica: replica.read(concept, prompts, texts))

    async def _ask_any(self, ask: Callable[[Replica], Awaitable[Answer]]) -> Answer:
        """The answer of the least loaded replica that can give one."""
        refusal: ApiError = EngineUnavailable()
        for _, replica in self._in_order([]):
            try:
                return await ask(replica)
            except ApiError as error:
                if error.code not in _TRY_ANOTHER:
                    raise
                refusal = error
        raise refusal

    def drain(self, seconds: float) -> None:
        self._draining = True
        self._announce()
        for replica in self._replicas:
            replica.drain(seconds)

    def _in_order(self, prefixes: list[int]) -> list[tuple[int, Replica]]:
        """The available replicas with their numbers, in the order in which to try them."""
        loads = {n: replica.load for n, replica in self._by_number.items() if replica.available}
        ordered = sorted(loads, key=loads.__getitem__)
        known = (self._readers[prefix] for prefix in reversed(prefixes) if prefix in self._readers)
        reader = next(known, None)
        if reader in loads and loads[reader] <= loads[ordered[0]] + _MAX_AHEAD:
            ordered.remove(reader)
            ordered.insert(0, reader)
        return [(number, self._by_number[number]) for number in ordered]

    def _remember(self, prefixes: list[int], number: int) -> None:
        for prefix in prefixes:
            self._readers[prefix] = number
            self._readers.move_to_end(prefix)
        while len(self._readers) > self._max_remembered:
            self._readers.popitem(last=False)


def _prefix_hashes(prompt: list[int]) -> Iterator[int]:
    """Hashes of the first span of the prompt, of its first two spans, and so on."""
    prefix = 0
    for end in range(_SPAN, min(len(prompt), _SPAN * _MAX_SPANS) + 1, _SPAN):
        prefix = hash((prefix, tuple(prompt[end - _SPAN : end])))
        yield prefix

"""Combines several workers into one engine and routes requests. Knows no sockets and no processes."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from app.errors import ApiError, EngineUnavailable, ErrorCode
from app.telemetry.observation import WorkerState
from app.workers.connection import StandingWorker
from app.workers.engine import Engine, Generation
from app.workers.supervisor import SameModel, SupervisedEngine, supervise
from app.workers.text_file_cache import TextFileCache
from inference.interface.concepts import (
    DirectionResult,
    TakeDirection,
    TrainConcept,
    TrainingUpdate,
    VectorsResult,
)
from inference.interface.config import EngineConfig
from inference.interface.processors import allowed_processors
from inference.interface.protocol import ModelInfo
from inference.interface.requests import GenerationRequest
from inference.interface.worker_key import WorkerKey

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


@asynccontextmanager
async def run_replicas(config: EngineConfig) -> AsyncIterator[RunningEngine]:
    """Starts `config.replicas` workers with the same model. Raises StartError if one cannot start."""
    count = config.replicas
    if count > 1 and config.threads is None:
        threads = max(1, allowed_processors() // count)
        config = msgspec.structs.replace(config, threads=threads)
    async with AsyncExitStack() as stack:
        # The first worker starts alone, because it may have to download the model.
        first = await stack.enter_async_context(supervise(config))
        same = msgspec.structs.replace(config, source=first.model.directory, log=config.log.without_bars())
        others = [supervise(msgspec.structs.replace(same, replica=number)) for number in range(1, count)]
        try:
            async with asyncio.TaskGroup() as group:
                starting = [group.create_task(stack.enter_async_context(other)) for other in others]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        yield Replicas([first, *(task.result() for task in starting)]) if others else first


@asynccontextmanager
async def connect_workers(
    addresses: Sequence[str], key: WorkerKey | None, cache: Path
) -> AsyncIterator[RunningEngine]:
    """Connects to workers that were started on their own. Yields once one of them serves.

    All must have the same model. Those that cannot be reached, or refuse this server, are tried again.
    `key`: for those at tcp://. `cache`: the cache directory, for their tokenizers and chat templates.
    """
    same_model, files = SameModel(), TextFileCache(cache)
    sources = [
        StandingWorker(address, key if address.startswith("tcp:") else None, files) for address in addresses
    ]
    engines = [SupervisedEngine(source, same_model=same_model, patient=True) for source in sources]
    running = [asyncio.create_task(engine.run()) for engine in engines]
    serving = [asyncio.create_task(engine.wait_available()) for engine in engines]
    try:
        await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
        yield Replicas(engines) if len(engines) > 1 else engines[0]
    finally:
        for task in (*running, *serving):
            task.cancel()
        await asyncio.wait(running)


class Replicas:
    """Implements app.workers.engine.Engine.

    A request goes to the worker that has computed the longest prefix of its prompt, unless this worker has
    many more requests than the least loaded worker. In that case, or if no worker has computed a prefix, the
    request goes to the least loaded worker. Workers that are down get no requests. One worker trains a
    concept. The others load its direction from the cache directory when a request names the concept. A worker
    that finds none there refuses the request. Then it gets the direction from a worker that has it.
    """

    def __init__(self, replicas: Sequence[Replica], max_remembered: int = 100_000) -> None:
        """`max_remembered`: how many prompt prefixes to remember with their worker."""
        self._max_remembered = max_remembered
        self._replicas = list(replicas)
        self._readers: OrderedDict[int, int] = OrderedDict()
        """Hash of a prompt prefix -> index of the replica that has computed it most recently."""

    @property
    def model(self) -> ModelInfo:
        """The model, with the shortest context length of all replicas: any of them may get a request."""
        models = [replica.model for replica in self._replicas if replica.started]
        shortest = min(models, key=lambda model: model.context_length)
        return msgspec.structs.replace(
            models[0], context_length=shortest.context_length, context_limit=shortest.context_limit
        )

    @property
    def available(self) -> bool:
        return any(replica.available for replica in self._replicas)

    @property
    def free_capacity(self) -> int:
        """The sum over the available replicas, or over all replicas if all are down."""
        available = [replica for replica in self._replicas if replica.available]
        return sum(replica.free_capacity for replica in available or self._replicas)

    @property
    def workers(self) -> Sequence[WorkerState]:
        return [worker for replica in self._replicas for worker in replica.workers]

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
        """Tries the replicas in order. A refused request has had no effect, so the next one may take it."""
        prefixes = list(_prefix_hashes(request.prompt_token_ids))
        refusal: ApiError = EngineUnavailable()
        for number in self._in_order(prefixes):
            try:
                generation = await self._submit_to(number, request)
            except ApiError as error:
                if error.code not in _TRY_ANOTHER:
                    raise
                refusal = error
            else:
                self._remember(prefixes, number)
                return generation
        raise refusal

    async def _submit_to(self, number: int, request: GenerationRequest) -> Generation:
        replica = self._replicas[number]
        try:
            return await replica.submit(request)
        except ApiError as error:
            if error.code is not ErrorCode.UNKNOWN_STEERING_CONCEPT:
                raise
            if not await self._bring(replica, request.concepts):
                raise
        return await replica.submit(request)

    async def _bring(self, replica: Replica, concepts: Iterable[str]) -> bool:
        """Gives a worker the directions of these concepts that others have. Returns whether there was one."""
        others = [other for other in self._replicas if other is not replica and other.available]
        found = False
        for concept in concepts:
            for other in others:
                with suppress(EngineUnavailable):
                    result = await other.direction(concept)
                    if result.content is not None:
                        replica.take_direction(TakeDirection(concept, result.content, result.calibration))
                        found = True
                        break
        return found

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

    async def export(self, concept: str) -> VectorsResult:
        return await self._ask_any(lambda replica: replica.export(concept))

    async def read(self, concept: str, prompts: list[list[int]], texts: list[list[int]]) -> list[list[float]]:
        return await self._ask_any(lambda replica: replica.read(concept, prompts, texts))

    async def _ask_any(self, ask: Callable[[Replica], Awaitable[Answer]]) -> Answer:
        """The answer of the least loaded replica that can give one."""
        refusal: ApiError = EngineUnavailable()
        for number in self._in_order([]):
            try:
                return await ask(self._replicas[number])
            except ApiError as error:
                if error.code not in _TRY_ANOTHER:
                    raise
                refusal = error
        raise refusal

    def drain(self, seconds: float) -> None:
        for replica in self._replicas:
            replica.drain(seconds)

    def _in_order(self, prefixes: list[int]) -> list[int]:
        """Indices of the available replicas, in the order in which to try them."""
        loads = {n: replica.load for n, replica in enumerate(self._replicas) if replica.available}
        ordered = sorted(loads, key=loads.__getitem__)
        known = (self._readers[prefix] for prefix in reversed(prefixes) if prefix in self._readers)
        reader = next(known, None)
        if reader in loads and loads[reader] <= loads[ordered[0]] + _MAX_AHEAD:
            ordered.remove(reader)
            ordered.insert(0, reader)
        return ordered

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

"""The registry of steering concepts: creates, lists and deletes them, and makes them usable for requests.

Knows the store and the trainings; knows no HTTP and no tokens.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence

import msgspec
from anyio import to_thread

from app.concepts.concept import Concept, names_other_content
from app.concepts.store import ConceptStore
from app.concepts.trainings import SharedFuture, Training, Trainings
from app.concepts.uses import UsedConcept, deleted, unknown, unusable
from app.errors import ApiError, EngineUnavailable, ErrorCode, InternalError, InvalidRequest, QueueFull
from app.schemas.concepts import (
    ConceptCard,
    ConceptDetail,
    ConceptExample,
    ConceptList,
    ConceptState,
    full_id,
)
from app.schemas.reports import ConceptReport
from app.settings import LimitSettings
from app.telemetry.metrics import Metrics
from inference.interface.concepts import ConceptReport as WorkerReport

_log = logging.getLogger(__name__)

_MAX_ATTEMPTS = 3
"""How often to start a concept's training if the engine is lost. The training itself may crash the engine."""


class _Entry:
    """A concept in the registry, stored or in creation."""

    def __init__(self, concept: Concept) -> None:
        self.concept = concept
        self.stored = SharedFuture()
        """Settled once the concept is stored, or with an error. Until then it is in creation."""

    def fail_waiters(self, error: ApiError) -> None:
        """Raises `error` in all callers that wait for the creation. The creation goes on."""
        if not self.stored.settled:
            interrupted, self.stored = self.stored, SharedFuture()
            interrupted.settle(error)


class Concepts:
    """All steering concepts of the server. The methods run in one event loop.

    While the server runs, disk operations and tokenization run on other threads.
    """

    def __init__(
        self,
        store: ConceptStore,
        trainings: Trainings,
        metrics: Metrics,
        limits: LimitSettings,
        present: Callable[[WorkerReport], ConceptReport],
    ) -> None:
        """Loads all concepts from the store. `present`: turns the worker's report into that of the API."""
        self._store = store
        self._present = present
        self._trainings = trainings
        self._metrics = metrics
        self._limits = limits
        self._entries: dict[str, _Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._disk = asyncio.Lock()
        for concept in store.load():
            self._enter(concept).stored.settle()

    def overview(self) -> ConceptList:
        """All concepts, and the concept files that cannot be used."""
        cards = [self._card(entry.concept) for entry in self._entries.values()]
        return ConceptList(data=cards, problems=self._store.problems)

    def describe(self, given_id: str, has_examples: bool = False) -> ConceptDetail:
        """One concept with its report, and perhaps with its examples. Raises UNKNOWN_STEERING_CONCEPT."""
        concept = self._known(given_id).concept
        detail = self._detail(concept)
        if not has_examples:
            return detail
        pairs = [ConceptExample(each.positive, each.negative, each.prompt) for each in concept.examples]
        return msgspec.structs.replace(detail, examples=pairs)

    def find(self, given_ids: Iterable[str], param: str | None = "steering_concepts") -> list[UsedConcept]:
        """The concepts with these ids, which the request's field `param` names, or its path (None).

        Raises UNKNOWN_STEERING_CONCEPT.
        """
        return [UsedConcept(self._known(given_id, param).concept, param) for given_id in given_ids]

    async def make_usable(self, used: Sequence[UsedConcept], measured: bool = False) -> None:
        """Trains the untrained concepts, and returns when the engine can use all of these concepts.

        `measured`: returns only when their reports are complete as well.
        Raises INVALID_REQUEST if the model cannot use one of them, UNKNOWN_STEERING_CONCEPT if one was
        deleted in the meantime, INTERNAL if a training fails without a fault of its examples, or UNAVAILABLE.
        """
        for use in used:
            if not self._is_current(use.concept):
                raise unknown(use.concept.id, use.param)
        started = [(use, self._trainings.start(use.concept)) for use in used]
        for use, training in started:
            try:
                await (training.ended if measured else training.usable).wait()
            except ApiError as error:
                raise unusable(use, error) from None

    def refusal_error(self, used: Sequence[UsedConcept]) -> ApiError:
        """The error for a request whose concepts were all usable, but one is unknown to the engine.

        If none of the concepts was deleted, this also makes the next request train them again.
        """
        for use in used:
            if not self._is_current(use.concept):
                return unknown(use.concept.id, use.param)
        for use in used:
            self._trainings.invalidate(use.concept)
        return EngineUnavailable("a steering concept of this request must be trained again; try again later")

    async def create(self, wanted: Concept) -> ConceptDetail:
        """Trains, measures and stores a concept. Returns the existing one if it has the same id and content.

        The creation goes on if the caller stops waiting. If the engine is lost, the caller gets UNAVAILABLE
        and the creation goes on when the engine is back. Raises INVALID_REQUEST or MISSING_CAPABILITY if the
        concept cannot be trained, CONFLICT, QUEUE_FULL, UNAVAILABLE or INTERNAL.
        """
        if names_other_content(wanted):
            message = "name is a digest, but not the digest of these examples or vectors"
            raise InvalidRequest(message, "name")
        entry = self._entries.get(wanted.id)
        if entry is None:
            entry = self._begin(wanted)
        elif entry.concept.digest != wanted.digest:
            message = f"{wanted.id} already exists with other examples or vectors"
            raise ApiError(ErrorCode.CONFLICT, message, "name")
        await self._finish(entry)
        return self._detail(entry.concept)

    async def delete(self, given_id: str) -> None:
        """Deletes a concept that a caller has created. Once this returns, the deletion is permanent.

        Requests that wait for the concept fail. Requests that already use it go on. Raises
        UNKNOWN_STEERING_CONCEPT, CONFLICT or UNAVAILABLE.
        """
        if self._known(given_id).concept.shipped:
            message = f"{full_id(given_id)} comes with the server and cannot be deleted"
            raise ApiError(ErrorCode.CONFLICT, message)
        async with self._disk:
            entry = self._known(given_id)
            await self._on_disk(lambda: self._store.remove(entry.concept), "deleted")
            self._drop(entry, deleted(entry.concept))

    def train_all(self) -> None:
        """Starts training all concepts in the background, one after the other, while the engine is idle."""
        self._start_task(self._train_all())

    async def _train_all(self) -> None:
        for entry in list(self._entries.values()):
            try:
                await self._train(entry, lambda concept: self._trainings.start(concept, background=True))
            except EngineUnavailable:
                return
            except ApiError as error:
                _log.warning("%s cannot be used with this model: %s", entry.concept.id, error.message)

    async def _train(self, entry: _Entry, start: Callable[[Concept], Training]) -> None:
        """Trains a concept, and starts again if the engine is lost. Raises the error of a failed training."""
        for _ in range(_MAX_ATTEMPTS):
            if not self._is_current(entry.concept):
                return
            try:
                await start(entry.concept).ended.wait()
                return
            except EngineUnavailable as error:
                entry.fail_waiters(error)
                await self._trainings.wait_available()
        raise InternalError("the engine was lost each time the concept was trained")

    def _begin(self, concept: Concept) -> _Entry:
        created = [entry for entry in self._entries.values() if not entry.concept.shipped]
        if len(created) >= self._limits.max_concepts:
            rule = f"there are {len(created)} created concepts, which is the limit; delete one first"
            raise ApiError(ErrorCode.CONFLICT, rule)
        in_creation = sum(not entry.stored.settled for entry in created)
        if in_creation >= self._limits.max_trainings:
            raise QueueFull(f"{in_creation} concepts are being created, which is the limit; try again later")
        entry = self._enter(concept)
        self._start_task(self._create(entry))
        return entry

    async def _create(self, entry: _Entry) -> None:
        try:
            await self._train(entry, self._trainings.retry)
            async with self._disk:
                if self._is_current(entry.concept):
                    await self._on_disk(lambda: self._store.write(entry.concept), "stored")
            entry.stored.settle()
        except ApiError as error:
            if self._is_current(entry.concept):
                self._drop(entry, error)
        except Exception:
            _log.exception("concept %s cannot be stored", entry.concept.id)
            self._drop(entry, InternalError())
        finally:
            entry.stored.settle(EngineUnavailable())  # has an effect only if the event loop ends first

    async def _finish(self, entry: _Entry) -> None:
        """Waits until the concept is stored and trained. Raises the error if the creation fails."""
        await entry.stored.wait()
        try:
            if self._is_current(entry.concept):
                await self._trainings.retry(entry.concept).ended.wait()
        except ApiError:
            if self._is_current(entry.concept):
                raise
        if not self._is_current(entry.concept):
            raise deleted(entry.concept)

    async def _on_disk(self, act: Callable[[], None], what: str) -> None:
        """Runs a disk operation on another thread. `what`: "stored" or "deleted", for error messages."""
        try:
            await to_thread.run_sync(act)
        except OSError:
            _log.exception("a concept cannot be %s", what)
            raise ApiError(ErrorCode.UNAVAILABLE, f"the concept cannot be {what}") from None

    def _enter(self, concept: Concept) -> _Entry:
        entry = self._entries[concept.id] = _Entry(concept)
        self._metrics.concepts.set(len(self._entries))
        return entry

    def _drop(self, entry: _Entry, error: ApiError) -> None:
        """Removes a concept from the registry. Callers that wait for its creation get `error`."""
        del self._entries[entry.concept.id]
        self._metrics.concepts.set(len(self._entries))
        entry.stored.settle(error)
        digests = {other.concept.digest for other in self._entries.values()}
        if entry.concept.digest not in digests:
            self._trainings.forget(entry.concept)

    def _known(self, given_id: str, param: str | None = None) -> _Entry:
        entry = self._entries.get(full_id(given_id))
        if entry is None:
            raise unknown(full_id(given_id), param)
        return entry

    def _is_current(self, concept: Concept) -> bool:
        """Whether the concept was neither deleted nor replaced."""
        entry = self._entries.get(concept.id)
        return entry is not None and entry.concept is concept

    def _start_task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the event loop keeps only weak references to tasks
        task.add_done_callback(self._tasks.discard)

    def _card(self, concept: Concept) -> ConceptCard:
        training = self._trainings.get(concept)
        return ConceptCard(
            id=concept.id,
            created=concept.created,
            description=concept.description,
            num_examples=len(concept.examples),
            imported=concept.vectors is not None,
            shipped=concept.shipped,
            state=training.state if training else ConceptState.UNTRAINED,
            progress=training.progress if training else 0.0,
        )

    def _detail(self, concept: Concept) -> ConceptDetail:
        training = self._trainings.get(concept)
        card = self._card(concept)
        return ConceptDetail(
            **{name: getattr(card, name) for name in card.__struct_fields__},
            report=self._present(training.report) if training and training.report else None,
            error=training.error.message if training and training.error else None,
        )

"""The steering concepts: which there are, how they come and go, and which of them requests may use now.

Knows the store and the trainings; knows no HTTP and no tokens.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence

from anyio import to_thread

from app.concepts.concept import Concept, is_id, names_other_examples
from app.concepts.store import ConceptStore
from app.concepts.trainings import SharedFuture, Training, Trainings
from app.errors import (
    SERVER_FAULTS,
    ApiError,
    EngineUnavailable,
    ErrorCode,
    InternalError,
    InvalidRequest,
    QueueFull,
    shorten,
)
from app.schemas.concepts import ConceptCard, ConceptDetail, ConceptList, ConceptState, full_id
from app.settings import LimitSettings
from app.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

_MAX_LOSSES = 3
"""Of the engine while it trains one concept, which may be what ends it."""


class _Entry:
    """A concept that is known."""

    def __init__(self, concept: Concept) -> None:
        self.concept = concept
        self.stored = SharedFuture()
        """Until it is settled, the concept is being created."""

    def interrupt(self, error: ApiError) -> None:
        """Whoever waits for it to be created waits no longer; its creation goes on."""
        if not self.stored.settled:
            interrupted, self.stored = self.stored, SharedFuture()
            interrupted.settle(error)


class Concepts:
    """All of it happens in one event loop, but for what waits for the disk."""

    def __init__(
        self, store: ConceptStore, trainings: Trainings, metrics: Metrics, limits: LimitSettings
    ) -> None:
        """Reads the store."""
        self._store = store
        self._trainings = trainings
        self._metrics = metrics
        self._limits = limits
        self._entries: dict[str, _Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._disk = asyncio.Lock()
        for concept in store.load():
            self._enter(concept).stored.settle()

    def overview(self) -> ConceptList:
        cards = [self._card(entry.concept) for entry in self._entries.values()]
        return ConceptList(data=cards, problems=self._store.problems)

    def describe(self, given_id: str) -> ConceptDetail:
        """Raises UNKNOWN_STEERING_CONCEPT."""
        return self._detail(self._known(given_id).concept)

    def find(self, given_ids: Iterable[str]) -> list[Concept]:
        """Raises UNKNOWN_STEERING_CONCEPT."""
        return [self._known(given_id, "steering_concepts").concept for given_id in given_ids]

    async def make_usable(self, concepts: Sequence[Concept]) -> None:
        """Trains what is not trained yet, and returns when the engine can steer by all of them.

        Raises INVALID_REQUEST for one that the model cannot use, UNKNOWN_STEERING_CONCEPT for one that
        was deleted meanwhile, or UNAVAILABLE.
        """
        for concept in concepts:
            if not self._is_current(concept):
                raise _unknown(concept.id, "steering_concepts")
        started = [(concept, self._trainings.start(concept)) for concept in concepts]
        for concept, training in started:
            try:
                await training.usable.wait()
            except ApiError as error:
                raise _unusable(concept, error) from None

    def refused(self, concepts: Sequence[Concept]) -> ApiError:
        """What to answer when the engine does not know one of them, although all were usable."""
        for concept in concepts:
            if not self._is_current(concept):
                return _unknown(concept.id, "steering_concepts")
        for concept in concepts:
            self._trainings.doubt(concept)
        return EngineUnavailable("a steering concept of the request has to be trained again; try again later")

    async def create(self, wanted: Concept) -> ConceptDetail:
        """Trains, measures and stores it. The same concept a second time is the first one.

        It goes on even if nobody waits any more, and after a loss of the engine, which nobody waits for.
        Raises INVALID_REQUEST or MISSING_CAPABILITY for what cannot be trained, CONFLICT, QUEUE_FULL, or
        UNAVAILABLE.
        """
        if names_other_examples(wanted):
            raise InvalidRequest("name has the form of an id that is made from examples, not these", "name")
        entry = self._entries.get(wanted.id)
        if entry is None:
            entry = self._begin(wanted)
        elif entry.concept.digest != wanted.digest:
            message = f"{wanted.id} is there already, with other examples"
            raise ApiError(ErrorCode.CONFLICT, message, "name")
        await self._finish(entry)
        return self._detail(entry.concept)

    async def delete(self, given_id: str) -> None:
        """When this returns, it does not come back. What waits for it ends; what runs with it goes on.

        Raises UNKNOWN_STEERING_CONCEPT, CONFLICT or UNAVAILABLE.
        """
        if self._known(given_id).concept.shipped:
            message = f"{full_id(given_id)} comes with the server and cannot be deleted"
            raise ApiError(ErrorCode.CONFLICT, message)
        async with self._disk:
            entry = self._known(given_id)
            await self._on_disk(lambda: self._store.remove(entry.concept.id), "deleted")
            self._drop(entry, _deleted(entry.concept))

    def train_all(self) -> None:
        """One after the other, and only while the engine has nothing else to do."""
        self._go_on(self._train_all())

    async def _train_all(self) -> None:
        for entry in list(self._entries.values()):
            try:
                await self._train(entry, lambda concept: self._trainings.start(concept, background=True))
            except EngineUnavailable:
                return
            except ApiError as error:
                _log.warning("%s cannot be used with this model: %s", entry.concept.id, error.message)

    async def _train(self, entry: _Entry, start: Callable[[Concept], Training]) -> None:
        """Starts again when the engine was lost meanwhile. Raises why it cannot be trained."""
        for _ in range(_MAX_LOSSES):
            if not self._is_current(entry.concept):
                return
            try:
                await start(entry.concept).ended.wait()
                return
            except EngineUnavailable as error:
                entry.interrupt(error)
                await self._trainings.wait_available()
        raise InternalError("the engine was lost whenever the concept was trained")

    def _begin(self, concept: Concept) -> _Entry:
        created = [entry for entry in self._entries.values() if not entry.concept.shipped]
        if len(created) >= self._limits.max_concepts:
            rule = f"there are {len(created)} created concepts, and there can be no more: delete one first"
            raise ApiError(ErrorCode.CONFLICT, rule)
        coming = sum(not entry.stored.settled for entry in created)
        if coming >= self._limits.max_trainings:
            raise QueueFull(f"{coming} concepts are being created, and no more can be; try again later")
        entry = self._enter(concept)
        self._go_on(self._create(entry))
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
            entry.stored.settle(EngineUnavailable())  # cancelled: the event loop ends

    async def _finish(self, entry: _Entry) -> None:
        """Waits until it is stored and ready. Raises why it is not."""
        await entry.stored.wait()
        try:
            if self._is_current(entry.concept):
                await self._trainings.retry(entry.concept).ended.wait()
        except ApiError:
            if self._is_current(entry.concept):
                raise
        if not self._is_current(entry.concept):
            raise _deleted(entry.concept)

    async def _on_disk(self, act: Callable[[], None], what: str) -> None:
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
        """`error` is for those who wait for it to be created."""
        del self._entries[entry.concept.id]
        self._metrics.concepts.set(len(self._entries))
        entry.stored.settle(error)
        digests = {other.concept.digest for other in self._entries.values()}
        if entry.concept.digest not in digests:
            self._trainings.forget(entry.concept)

    def _known(self, given_id: str, param: str | None = None) -> _Entry:
        entry = self._entries.get(full_id(given_id))
        if entry is None:
            raise _unknown(full_id(given_id), param)
        return entry

    def _is_current(self, concept: Concept) -> bool:
        entry = self._entries.get(concept.id)
        return entry is not None and entry.concept is concept

    def _go_on(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the event loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    def _card(self, concept: Concept) -> ConceptCard:
        training = self._trainings.get(concept)
        return ConceptCard(
            id=concept.id,
            created=concept.created,
            description=concept.description,
            num_examples=len(concept.examples),
            shipped=concept.shipped,
            state=training.state if training else ConceptState.UNTRAINED,
            progress=training.progress if training else 0.0,
        )

    def _detail(self, concept: Concept) -> ConceptDetail:
        training = self._trainings.get(concept)
        card = self._card(concept)
        return ConceptDetail(
            **{name: getattr(card, name) for name in card.__struct_fields__},
            report=training.report if training else None,
            error=training.error.message if training and training.error else None,
        )


def _unknown(concept_id: str, param: str | None = None) -> ApiError:
    shown = concept_id if is_id(concept_id) else shorten(concept_id)
    message = f"steering concept {shown} is unknown; GET /steering_concepts lists what there is"
    return ApiError(ErrorCode.UNKNOWN_STEERING_CONCEPT, message, param)


def _deleted(concept: Concept) -> ApiError:
    return ApiError(ErrorCode.CONFLICT, f"{concept.id} was deleted while it was being created")


def _unusable(concept: Concept, error: ApiError) -> ApiError:
    if error.code is ErrorCode.UNKNOWN_STEERING_CONCEPT:
        return _unknown(concept.id, "steering_concepts")
    if error.code in SERVER_FAULTS:
        return error
    return InvalidRequest(
        f"{concept.id} cannot be used with this model: {error.message}", "steering_concepts"
    )

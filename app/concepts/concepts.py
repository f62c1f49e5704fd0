"""All steering concepts: creates, lists and deletes them, and makes them usable for requests.

Knows the storage and the trainings; knows no HTTP and no tokens.
"""

import asyncio
import logging
from collections.abc import Collection, Coroutine, Iterable, Sequence
from contextlib import suppress

from app.concepts.concept import Concept, names_other_content
from app.concepts.descriptions import card_of, detail_of
from app.concepts.steerable import SteerableModel
from app.concepts.storage import Storage
from app.concepts.trainings import SharedFuture, Training
from app.concepts.uses import UsedConcept, deleted, taken, unknown, unusable
from app.errors import ApiError, EngineUnavailable, ErrorCode, InternalError, InvalidRequest, QueueFull
from app.schemas.concepts import ConceptDetail, ConceptList, full_id
from app.settings import LimitSettings
from app.telemetry.metrics import Metrics

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
    """All steering concepts of the server, for all of its models. The methods run in one event loop.

    While the server runs, disk operations and tokenization run on other threads.
    """

    def __init__(
        self,
        storage: Storage,
        metrics: Metrics,
        limits: LimitSettings,
    ) -> None:
        """Loads all concepts from the storage."""
        self._storage = storage
        self._metrics = metrics
        self._limits = limits
        self._entries: dict[str, _Entry] = {}
        self._models: list[SteerableModel] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._storing = asyncio.Lock()
        for concept in storage.load():
            self._enter(concept).stored.settle()

    def add_model(self, model: SteerableModel) -> None:
        """The methods below expect only models that were added. A model stays until the server ends."""
        self._models.append(model)

    def overview(self, models: Sequence[SteerableModel]) -> ConceptList:
        """All concepts, with their states on these models, and the concept files that cannot be used."""
        cards = [card_of(entry.concept, models) for entry in self._entries.values()]
        return ConceptList(data=cards, problems=self._storage.problems)

    def describe(
        self, given_id: str, models: Sequence[SteerableModel], has_examples: bool = False
    ) -> ConceptDetail:
        """One concept with its reports on these models, and perhaps with its examples.

        Raises UNKNOWN_STEERING_CONCEPT.
        """
        return detail_of(self._known(given_id).concept, models, has_examples)

    def find(self, given_ids: Iterable[str], param: str | None = "steering_concepts") -> list[UsedConcept]:
        """The concepts with these ids, which the request's field `param` names, or its path (None).

        Raises UNKNOWN_STEERING_CONCEPT.
        """
        return [UsedConcept(self._known(given_id, param).concept, param) for given_id in given_ids]

    async def make_usable(
        self, used: Sequence[UsedConcept], model: SteerableModel, measured: bool = False
    ) -> None:
        """Trains the untrained concepts, and returns when the model's engine can use all of these concepts.

        `measured`: returns only when their reports are complete as well.
        Raises INVALID_REQUEST if the model cannot use one of them, UNKNOWN_STEERING_CONCEPT if one was
        deleted in the meantime, INTERNAL if a training fails without a fault of its examples, or UNAVAILABLE.
        """
        for use in used:
            if not self._is_current(use.concept):
                raise unknown(use.concept.id, use.param)
        started = [(use, model.trainings.start(use.concept)) for use in used]
        for use, training in started:
            try:
                await (training.ended if measured else training.usable).wait()
            except ApiError as error:
                raise unusable(use, error) from None

    def refusal_error(self, used: Sequence[UsedConcept], model: SteerableModel) -> ApiError:
        """The error for a request whose concepts were all usable, but one is unknown to the model's engine.

        If none of the concepts was deleted, this also makes the next request train them again.
        """
        for use in used:
            if not self._is_current(use.concept):
                return unknown(use.concept.id, use.param)
        for use in used:
            model.trainings.invalidate(use.concept)
        return EngineUnavailable("a steering concept of this request must be trained again; try again later")

    async def create(self, wanted: Concept, models: Sequence[SteerableModel]) -> ConceptDetail:
        """Trains and measures a concept on each of these models, and stores it.

        Returns the existing one if it has the same id and content. Models whose engines are down are left
        out, unless all are down. It is enough if one model can use the concept.

        The creation goes on if the caller stops waiting. If an engine is lost, the caller gets UNAVAILABLE
        and the creation goes on when the engine is back. Raises INVALID_REQUEST or MISSING_CAPABILITY if the
        concept cannot be trained, CONFLICT, QUEUE_FULL, UNAVAILABLE or INTERNAL.
        """
        if names_other_content(wanted):
            message = "name is a digest, but not the digest of these examples or vectors"
            raise InvalidRequest(message, "name")
        chosen = [model for model in models if model.trainings.available] or models
        entry = self._entries.get(wanted.id)
        if entry is None:
            entry = self._begin(wanted, chosen)
        elif entry.concept.digest != wanted.digest:
            raise taken(wanted)
        await self._finish(entry, chosen)
        return detail_of(entry.concept, models)

    async def delete(self, given_id: str) -> None:
        """Deletes a concept that a caller has created. Once this returns, the deletion is permanent.

        Requests that wait for the concept fail. Requests that already use it go on. Raises
        UNKNOWN_STEERING_CONCEPT, CONFLICT or UNAVAILABLE.
        """
        if self._known(given_id).concept.shipped:
            message = f"{full_id(given_id)} comes with the server and cannot be deleted"
            raise ApiError(ErrorCode.CONFLICT, message)
        async with self._storing:
            entry = self._known(given_id)
            await self._storage.remove(entry.concept)
            if self._is_current(entry.concept):
                self._drop(entry, deleted(entry.concept))

    def adopt(self, concept: Concept) -> None:
        """Takes a concept that another server has created and stored."""
        known = self._entries.get(concept.id)
        if known is not None:
            if known.concept.digest == concept.digest:
                known.stored.settle()
                return
            if known.concept.shipped:
                _log.warning("another server has created %s; the shipped concept is used here", concept.id)
                return
            self._drop(known, taken(concept))
        entry = self._enter(concept)
        entry.stored.settle()
        self._start_task(self._restore_on_all(entry))

    def keep_only(self, ids: Collection[str]) -> None:
        """Drops the stored concepts that other servers have deleted. `ids`: of all that are left.

        Keeps the shipped ones, and those in creation.
        """
        for entry in list(self._entries.values()):
            if entry.concept.id not in ids and not entry.concept.shipped and entry.stored.settled:
                self._drop(entry, deleted(entry.concept))

    def discard(self, concept_id: str) -> None:
        """Drops a stored concept that another server has deleted, if it is known."""
        self.keep_only(self._entries.keys() - {concept_id})

    def prepare(self, model: SteerableModel, train: bool) -> None:
        """Begins to find what earlier servers have trained on this model.

        `train`: then trains the other concepts in the background, one after the other, while the engine is
        idle.
        """
        self._start_task(self._prepare(model, train))

    async def _prepare(self, model: SteerableModel, train: bool) -> None:
        try:
            await self._restore_all(model)
        except EngineUnavailable:
            with suppress(EngineUnavailable):  # it will never be back, because the server ends
                await model.trainings.wait_available()
        if train:
            await self._train_all(model)

    async def _restore_all(self, model: SteerableModel) -> None:
        for entry in list(self._entries.values()):
            await self._restore(entry, model)

    async def _restore_on_all(self, entry: _Entry) -> None:
        for model in self._models:
            with suppress(EngineUnavailable):  # then the first request that needs the concept trains it
                await self._restore(entry, model)

    async def _restore(self, entry: _Entry, model: SteerableModel) -> None:
        """Raises EngineUnavailable."""
        if model.trainings.get(entry.concept) is None:
            report = await model.trainings.find_report(entry.concept)
            if report is not None and self._is_current(entry.concept):
                model.trainings.restore(entry.concept, report)

    async def _train_all(self, model: SteerableModel) -> None:
        for entry in list(self._entries.values()):
            try:
                await self._train(entry, model, background=True)
            except EngineUnavailable:
                return
            except ApiError as error:
                facts = {"concept": entry.concept.id, "model": model.name, "reason": error.message}
                _log.warning("%(concept)s cannot be used with %(model)s: %(reason)s", facts)

    async def _train(self, entry: _Entry, model: SteerableModel, background: bool = False) -> None:
        """Trains a concept, and starts again if the engine is lost. Raises the error of a failed training."""
        for _ in range(_MAX_ATTEMPTS):
            if not self._is_current(entry.concept):
                return
            try:
                await self._attempt(entry.concept, model, background).ended.wait()
                return
            except EngineUnavailable as error:
                entry.fail_waiters(error)
                await model.trainings.wait_available()
        raise InternalError("the engine was lost each time the concept was trained")

    def _attempt(self, concept: Concept, model: SteerableModel, background: bool) -> Training:
        if background:
            return model.trainings.start(concept, background=True)
        return model.trainings.retry(concept)

    def _begin(self, concept: Concept, models: Sequence[SteerableModel]) -> _Entry:
        created = [entry for entry in self._entries.values() if not entry.concept.shipped]
        if len(created) >= self._limits.max_concepts:
            rule = f"there are {len(created)} created concepts, which is the limit; delete one first"
            raise ApiError(ErrorCode.CONFLICT, rule)
        in_creation = sum(not entry.stored.settled for entry in created)
        if in_creation >= self._limits.max_trainings:
            raise QueueFull(f"{in_creation} concepts are being created, which is the limit; try again later")
        entry = self._enter(concept)
        self._start_task(self._create(entry, models))
        return entry

    async def _create(self, entry: _Entry, models: Sequence[SteerableModel]) -> None:
        try:
            await any_of(self._train(entry, model) for model in models)
            async with self._storing:
                if self._is_current(entry.concept):
                    await self._storage.write(entry.concept)
            entry.stored.settle()
        except ApiError as error:
            if self._is_current(entry.concept):
                self._drop(entry, error)
        except Exception:
            _log.exception("concept %s cannot be stored", entry.concept.id)
            self._drop(entry, InternalError())
        finally:
            entry.stored.settle(EngineUnavailable())  # has an effect only if the event loop ends first

    async def _finish(self, entry: _Entry, models: Sequence[SteerableModel]) -> None:
        """Waits until the concept is stored and trained. Raises the error if the creation fails."""
        await entry.stored.wait()
        try:
            if self._is_current(entry.concept):
                await any_of(model.trainings.retry(entry.concept).ended.wait() for model in models)
        except ApiError:
            if self._is_current(entry.concept):
                raise
        if not self._is_current(entry.concept):
            raise deleted(entry.concept)

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
            for model in self._models:
                model.trainings.forget(entry.concept)

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


async def any_of(works: Iterable[Coroutine[None, None, None]]) -> None:
    """Runs all, and waits for all. Raises the first ApiError if each raises one."""
    first, *others = works
    if not others:
        await first
        return
    results = await asyncio.gather(first, *others, return_exceptions=True)
    errors = [result for result in results if result is not None]
    for error in errors:
        if not isinstance(error, ApiError):
            raise error
    if len(errors) == len(results):
        raise errors[0]

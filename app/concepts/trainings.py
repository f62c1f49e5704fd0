"""Starts trainings on the engine and tracks their state, by the concept's digest.

Knows no names, no files and no tokens.
"""

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec
from anyio import to_thread

from app.concepts.concept import Concept
from app.errors import ApiError, EngineUnavailable, ErrorCode, InternalError, InvalidRequest
from app.schemas.concepts import ConceptState
from app.telemetry.metrics import Metrics
from app.workers.engine import Engine
from inference.interface.concepts import ConceptReport, TrainConcept, TrainingState, TrainingUpdate
from inference.interface.progress import Progress, report

_log = logging.getLogger(__name__)

_LOG_SECONDS = 30.0
_IN_PROGRESS = (ConceptState.TRAINING, ConceptState.MEASURING)


class SharedFuture:
    """An event that many tasks can wait for. If it carries an error, `wait` raises this error."""

    def __init__(self) -> None:
        self._settled = asyncio.Event()
        self._error: ApiError | None = None

    def settle(self, error: ApiError | None = None) -> None:
        """Wakes all waiting tasks. Later calls do nothing."""
        if not self.settled:
            self._error = error
            self._settled.set()

    @property
    def settled(self) -> bool:
        return self._settled.is_set()

    async def wait(self) -> None:
        """Returns once the event is settled. Raises its error, if it has one."""
        await self._settled.wait()
        if self._error is not None:
            raise self._error


class Training:
    """One attempt to train a concept's steering vector."""

    def __init__(self, background: bool) -> None:
        self.background = background
        self.state = ConceptState.TRAINING
        self.progress = 0.0
        self.report: ConceptReport | None = None
        self.error: ApiError | None = None
        """Why the training failed."""
        self.usable = SharedFuture()
        """Settled once the engine can steer by the concept, or with an error if it never can."""
        self.ended = SharedFuture()
        """Settled once the training is READY, or with an error once it has failed or stopped."""

    def update(self, update: TrainingUpdate) -> None:
        if update.state is TrainingState.FAILED:
            fault = InternalError("the training failed")
            self.fail(InvalidRequest(update.detail) if update.detail else fault)
            return
        self.state = ConceptState(update.state.value)
        self.progress, self.report = update.progress, update.report
        if update.state is not TrainingState.TRAINING:
            self.usable.settle()
        if update.state is TrainingState.READY:
            self.progress = 1.0
            self.ended.settle()

    def fail(self, error: ApiError) -> None:
        self.state, self.error = ConceptState.FAILED, error
        self.end(error)

    def reset(self) -> None:
        """Sets the state to UNTRAINED. The training has stopped without a result, but it has not failed."""
        self.state, self.progress = ConceptState.UNTRAINED, 0.0
        self.end(EngineUnavailable())

    def end(self, error: ApiError) -> None:
        self.usable.settle(error)
        self.ended.settle(error)


class Trainings:
    def __init__(
        self,
        model: str,
        engine: Engine,
        encode: Callable[[Concept], TrainConcept],
        metrics: Metrics,
        refusal: Callable[[Concept], ApiError | None] = lambda _: None,
    ) -> None:
        """`model`: the name of the engine's model.

        `encode` runs on another thread, and raises an ApiError if the concept cannot be trained.

        `refusal` returns this error before, if it is known without work.
        """
        self._model = model
        self._engine = engine
        self._encode = encode
        self._refusal = refusal
        self._metrics = metrics
        self._trainings: dict[str, Training] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def available(self) -> bool:
        """Whether the engine can train now."""
        return self._engine.available

    def accepts(self, concept: Concept) -> bool:
        """False if the concept was imported for another model."""
        return self._refusal(concept) is None

    async def wait_available(self) -> None:
        """Returns once the engine can train. Raises EngineUnavailable if it will never train again."""
        await self._engine.wait_available()

    def get(self, concept: Concept) -> Training | None:
        """The latest training of the concept, or one that has failed if the model cannot use the concept."""
        training = self._trainings.get(concept.digest)
        if training is None and (error := self._refusal(concept)):
            training = Training(background=False)
            training.fail(error)
        return training

    async def find_report(self, concept: Concept) -> ConceptReport | None:
        """The report of an earlier server's training, if the engine has kept it. Raises EngineUnavailable."""
        try:
            return (await self._engine.export(concept.digest)).report
        except ApiError as error:
            if error.code is not ErrorCode.UNKNOWN_STEERING_CONCEPT:
                raise
            return None

    def restore(self, concept: Concept, report: ConceptReport) -> None:
        """Makes a concept READY that an earlier server has trained, unless its training has begun again."""
        if self.get(concept) is None:
            training = self._trainings[concept.digest] = Training(background=True)
            training.update(TrainingUpdate(concept.digest, TrainingState.READY, 1.0, report))

    def start(self, concept: Concept, background: bool = False) -> Training:
        """Returns the latest training, even a failed one. Starts one if there is none or it has stopped.

        If the latest training runs in the background and `background` is false, prioritizes it.
        """
        training = self.get(concept)
        if training is None or training.state is ConceptState.UNTRAINED:
            return self._begin(concept, background)
        if training.background and not background and training.state in _IN_PROGRESS:
            training.background = False
            self._engine.prioritize(concept.digest)
        return training

    def retry(self, concept: Concept) -> Training:
        """Like `start`, but also starts a new training if the last one failed."""
        training = self.start(concept)
        return self._begin(concept) if training.state is ConceptState.FAILED else training

    def forget(self, concept: Concept) -> None:
        """Drops a deleted concept's training. Callers that wait for it get UNKNOWN_STEERING_CONCEPT."""
        self._engine.forget(concept.digest)
        if training := self._trainings.pop(concept.digest, None):
            training.end(ApiError(ErrorCode.UNKNOWN_STEERING_CONCEPT, "the steering concept was deleted"))

    def invalidate(self, concept: Concept) -> None:
        """Drops a READY training whose result the engine has lost. The next `start` begins a new one."""
        training = self.get(concept)
        if training and training.state is ConceptState.READY:
            del self._trainings[concept.digest]

    def _begin(self, concept: Concept, background: bool = False) -> Training:
        training = self._trainings[concept.digest] = Training(background)
        task = asyncio.create_task(self._run(concept, training))
        self._tasks.add(task)  # the event loop keeps only weak references to tasks
        task.add_done_callback(self._tasks.discard)
        return training

    async def _run(self, concept: Concept, training: Training) -> None:
        begin = time.monotonic()
        try:
            command = await to_thread.run_sync(self._encode, concept)
            if self.get(concept) is training:
                command = msgspec.structs.replace(command, background=training.background)
                async for update in self._engine.train(command):
                    training.update(update)
                    self._report(concept, training, time.monotonic() - begin)
        except EngineUnavailable:
            training.reset()
        except ApiError as error:
            training.fail(error)
        except Exception:
            _log.exception("concept %s cannot be trained", concept.id)
            training.fail(InternalError())
        finally:
            if training.state in _IN_PROGRESS:
                training.reset()  # the event loop ends, or the concept was deleted
            self._report(concept, training, time.monotonic() - begin, has_ended=True)
            self._metrics.count_training(training.state, self._model)

    def _report(self, concept: Concept, training: Training, seconds: float, has_ended: bool = False) -> None:
        """Logs how far a training is: a line in half a minute, and one at its end."""
        done = round(100 * training.progress)
        what = f"training {concept.id} on {self._model}"
        report(Progress(what, seconds, (done, 100), has_ended, _LOG_SECONDS), "percent")
        if has_ended:
            facts = {"concept": concept.id, "model": self._model, "seconds": seconds}
            _log.info(
                "training %(concept)s on %(model)s ended after %(seconds).1f seconds: %(state)s",
                facts | {"state": training.state.value},
            )

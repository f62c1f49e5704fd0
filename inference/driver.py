"""Runs an engine in the process of the caller, and keeps what it reports until the caller takes it.

The worker process does not use this: its loop sends each report to the gateway at once. Knows no text and no
sockets.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from inference.engine import Engine
from inference.interface.concepts import (
    ExportVectors,
    ReadingsResult,
    ReadTexts,
    TrainConcept,
    TrainingState,
    TrainingUpdate,
    VectorsResult,
)
from inference.interface.protocol import StepReport
from inference.interface.requests import FinishReason, GenerationRequest, SubmitResult, TokenEvent
from inference.interrupts import uninterrupted

_LAST_STATES = (TrainingState.READY, TrainingState.FAILED)


class DriverError(Exception):
    """The engine does not do what the caller waits for."""


class RefusedError(DriverError):
    """The engine refuses a request."""

    def __init__(self, result: SubmitResult) -> None:
        super().__init__(f"the engine refuses a request: {result.refusal} {result.detail}".strip())
        self.result = result


@dataclass
class Result:
    """The output of one choice."""

    token_ids: list[int] = field(default_factory=list)
    """With the stop token, if there is one."""
    events: list[TokenEvent] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    """None: the choice has not ended, or it was aborted."""


class Driver:
    """An engine, and what it has reported. Thread-safe, except that no two threads may train one concept.

    If several threads wait, they take turns in stepping the engine, and each step computes the requests of
    all. Ctrl-C takes effect between two steps.
    """

    def __init__(self, engine: Engine, *, check: bool = False, max_steps: int | None = None) -> None:
        """`check`: check the engine's bookkeeping after each step, for tests.

        `max_steps`: limit for one wait; a longer one counts as endless.
        """
        self.engine = engine
        self.num_steps = 0
        self.results: dict[tuple[str, int], Result] = {}
        """By request and index of the choice. Kept until `discard`."""
        self.failures: dict[str, str] = {}
        """What went wrong with each request that has failed. Kept until `discard`."""
        self._check = check
        self._max_steps = max_steps
        self._broken = False
        self._lock = threading.Lock()
        self._due: deque[Callable[[], None]] = deque()
        """What to do as soon as the engine does not step."""
        self._updates: dict[str, list[TrainingUpdate]] = {}
        """The updates of each concept that a caller trains."""
        self._answers: dict[str, VectorsResult | ReadingsResult | None] = {}
        """The answer to each command that a caller waits for. None: not yet there."""

    def add(self, request: GenerationRequest) -> SubmitResult:
        """Queues a request. Raises RefusedError."""
        with uninterrupted(), self._lock:
            self._catch_up()
            result = self.engine.add(request)
        if result.refusal is not None:
            raise RefusedError(result)
        return result

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends choice `index` of a request, or all choices (None), or a reading. No events follow.

        Does not wait for a step in progress, so destructors may call this.
        """
        self._soon(partial(self.engine.abort, request_id, index))

    def discard(self, request: GenerationRequest) -> None:
        """Ends a request and drops its results. Like `abort`, it does not wait."""
        self._soon(partial(self._discard, request))

    def step(self) -> StepReport:
        """Computes one step. Raises the engine's errors; its state is then invalid."""
        with uninterrupted(), self._lock:
            return self._step()

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Steps until `is_done`. Raises DriverError if the engine becomes idle, or takes too many steps."""
        steps = 0
        while True:
            with uninterrupted(), self._lock:
                self._catch_up()
                if is_done():
                    return
                if self.engine.is_idle:
                    raise DriverError("the engine has become idle too early")
                if steps == self._max_steps:
                    raise DriverError(f"the engine has not finished within {steps} steps")
                self._step()
            steps += 1

    def run(self, *requests: GenerationRequest) -> dict[tuple[str, int], Result]:
        """Adds the requests, and steps until the engine is idle. Returns all results. Raises RefusedError."""
        for request in requests:
            self.add(request)
        self.run_until(lambda: self.engine.is_idle)
        return self.results

    def train(
        self, command: TrainConcept, on_update: Callable[[TrainingUpdate], None] | None = None
    ) -> TrainingUpdate:
        """Trains a concept to the end. Returns the last update, which is READY or FAILED.

        `on_update`: called with each update. If the call is interrupted, the engine forgets the concept.
        """
        updates = self._updates[command.concept] = []
        reported = 0
        try:
            self._command(partial(self.engine.trainer.add, command))
            while not updates or updates[-1].state not in _LAST_STATES:
                self.run_until(lambda: len(updates) > reported)  # noqa: B023 - runs before `reported` changes
                for update in updates[reported:]:
                    reported += 1
                    if on_update:
                        on_update(update)
            return updates[-1]
        except BaseException:
            if not updates or updates[-1].state not in _LAST_STATES:  # else the concept is trained
                self.forget(command.concept)
            raise
        finally:
            del self._updates[command.concept]

    def forget(self, concept: str) -> None:
        """Drops a concept, and ends its training."""
        self._command(partial(self.engine.trainer.forget, concept))

    def export(self, command: ExportVectors) -> VectorsResult:
        """The vectors of a trained concept. They are None if the engine does not know the concept."""
        answer = self._ask(command.request_id, partial(self.engine.trainer.export, command))
        assert isinstance(answer, VectorsResult)  # noqa: S101 - for the type checker
        return answer

    def read(self, command: ReadTexts) -> ReadingsResult:
        """Reads a trained concept in texts. The readings are None if the engine cannot do it.

        If the call is interrupted, the engine ends the reading.
        """
        answer = self._ask(command.request_id, partial(self.engine.measuring.read_texts, command))
        assert isinstance(answer, ReadingsResult)  # noqa: S101 - for the type checker
        return answer

    def _ask(self, request_id: str, command: Callable[[], None]) -> VectorsResult | ReadingsResult | None:
        self._answers[request_id] = None
        try:
            self._command(command)
            self.run_until(lambda: self._answers[request_id] is not None)
            return self._answers[request_id]
        except BaseException:
            self.abort(request_id)
            raise
        finally:
            del self._answers[request_id]

    def _command(self, act: Callable[[], None]) -> None:
        with uninterrupted(), self._lock:
            act()

    def _soon(self, act: Callable[[], None]) -> None:
        """Does it at once, or after the step in progress, which may be one of this thread."""
        self._due.append(act)
        with uninterrupted():
            if self._lock.acquire(blocking=False):
                try:
                    self._catch_up()
                finally:
                    self._lock.release()

    def _catch_up(self) -> None:
        while self._due:
            self._due.popleft()()

    def _discard(self, request: GenerationRequest) -> None:
        self.engine.abort(request.request_id)
        self.failures.pop(request.request_id, None)
        for index in range(request.n):
            self.results.pop((request.request_id, index), None)

    def _step(self) -> StepReport:
        if self._broken:
            raise DriverError("the engine has failed before; load the model again")
        self._catch_up()
        self.num_steps += 1
        try:
            report = self.engine.step()
        except Exception:
            self._broken = True
            raise
        self._keep(report)
        if self._check:
            self.engine.check_integrity()
        return report

    def _keep(self, report: StepReport) -> None:
        for event in report.events:
            result = self.results.setdefault((event.request_id, event.index), Result())
            if result.finish_reason is not None:
                raise DriverError("the engine has reported an event after the last one")
            result.token_ids.append(event.token_id)
            result.events.append(event)
            result.finish_reason = event.finish_reason
        for failure in report.failures:
            self.failures[failure.request_id] = failure.detail
        for update in report.training:
            if update.concept in self._updates:
                self._updates[update.concept].append(update)
        answers: list[VectorsResult | ReadingsResult] = [*report.vectors, *report.readings]
        for answer in answers:
            if answer.request_id in self._answers:
                self._answers[answer.request_id] = answer

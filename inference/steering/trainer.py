"""Trains concepts while requests run: hands out a little work at a time, and takes the results back.

Knows which training is next, and how far each one is. Does not know how training works or what computes the
probes and answers.
"""

import logging
import math
from collections.abc import Callable, Generator

import msgspec

from inference.interface.concepts import (
    ConceptReport,
    DirectionResult,
    ExportVectors,
    SendDirection,
    TakeDirection,
    TrainConcept,
    TrainingState,
    TrainingUpdate,
    VectorsResult,
)
from inference.scheduling.probe import TrainingWork, Work
from inference.steering.calibration import calibrate
from inference.steering.checks import find_fault
from inference.steering.direction_files import DirectionFiles, decode_direction, encode_direction
from inference.steering.directions import Calibration, Direction, to_given_vectors
from inference.steering.measurements import ProbeFactory
from inference.steering.search import candidates, refined_blocks
from inference.steering.steerer import Steerer
from inference.steering.training import UntrainableError, train
from inference.steering.training_job import TrainingJob

_log = logging.getLogger(__name__)


class Trainer:
    def __init__(
        self,
        steerer: Steerer,
        files: DirectionFiles,
        *,
        vocab_size: int,
        max_tokens: int,
        shape: tuple[int, int],
        blocks: tuple[int, ...] | None = None,
        refines: bool = False,
    ) -> None:
        """`max_tokens`: limit for a prompt and a text together. `shape`: (number of layers, hidden size).

        `blocks`: the only decoder blocks to steer. None: the training chooses. Raises ConfigError if the
        model does not have them. `refines`: whether trainings refine directions, if there are blocks for it.
        """
        self._candidates = candidates(shape[0], blocks)
        self._refined = refined_blocks(self._candidates, shape[0]) if refines else None
        self._steerer = steerer
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        self._shape = shape
        self._files = files
        self._load_calibration()
        self._reports: dict[str, ConceptReport] = {}
        self._jobs: dict[str, TrainingJob] = {}
        self._owners: dict[TrainingWork, TrainingJob] = {}
        self._exports: list[VectorsResult] = []
        self._directions: list[DirectionResult] = []
        self._updates: dict[str, TrainingUpdate] = {}
        """The newest update of each concept, until `take_updates` returns it."""

    @property
    def is_idle(self) -> bool:
        results = (self._updates, self._exports, self._directions)
        return not self._jobs and not self._owners and not any(results)

    def add(self, command: TrainConcept) -> None:
        """Starts a training, unless the concept is trained or in training already."""
        if report := self._find_trained(command.concept):
            self._post(TrainingUpdate(command.concept, TrainingState.READY, 1.0, report))
            return
        if fault := find_fault(command, self._vocab_size, self._max_tokens):
            _log.error("concept %s cannot be trained: %s", command.concept, fault)
            self._post(TrainingUpdate(command.concept, TrainingState.FAILED))
            return
        if command.concept not in self._jobs:
            self._jobs[command.concept] = TrainingJob(
                command, self._work(command), refines=self._refined is not None
            )
        if not command.background:
            self.prioritize(command.concept)
        self._post_progress(self._jobs[command.concept])

    def prioritize(self, concept: str) -> None:
        if job := self._jobs.get(concept):
            job.background = False

    def forget(self, concept: str) -> None:
        """Deletes the concept. Posts no more updates for it, and discards its work in flight."""
        self._updates.pop(concept, None)
        self._jobs.pop(concept, None)
        self._reports.pop(concept, None)
        self._steerer.remove(concept)
        self._files.remove(concept)

    def has_work(self, serving: bool) -> bool:
        """Whether there is a training to go on with. `serving`: as in `next_work`."""
        return self._next_job(serving) is not None

    @property
    def num_tokens_in_flight(self) -> int:
        """How many tokens the work has that was handed out and has not come back."""
        return sum(work.num_tokens for work in self._owners)

    def next_work(self, serving: bool, room: int) -> list[TrainingWork]:
        """What to compute next, up to `room` tokens. At least one piece if none is in flight, however long.

        Background trainings wait while the engine is `serving` requests.
        """
        job = self._next_job(serving)
        if job is None or (room <= 0 and self._owners) or not self._advance(job):
            return []
        taken = job.take(room, at_least=0 if self._owners else 1)
        self._owners.update(dict.fromkeys(taken, job))
        return taken

    def complete(self, work: TrainingWork) -> None:
        """Takes work that was computed."""
        job = self._owners.pop(work)
        if self._jobs.get(job.concept) is not job:
            return
        try:
            job.complete(work)
        except UntrainableError as error:
            self._fail(job, str(error))
        else:
            self._post_progress(job)

    def fail(self, work: TrainingWork) -> None:
        """Ends the training that needs this work, because it cannot be computed."""
        job = self._owners.pop(work)
        if self._jobs.get(job.concept) is job:
            self._fail(job)

    def knows(self, concept: str) -> bool:
        """Whether requests can name the concept, because this process or another one has trained it."""
        return self._steerer.get(concept) is not None or self._find_trained(concept) is not None

    def export(self, command: ExportVectors) -> None:
        """Puts the concept's vectors into the next `take_exports`."""
        report = self._find_trained(command.concept)
        direction = self._steerer.get(command.concept)
        calibration = self._steerer.calibration
        if report is None or direction is None or calibration is None:
            self._exports.append(VectorsResult(command.request_id))
            return
        norms = [calibration.norms[block] for block in direction.blocks]
        self._exports.append(VectorsResult(command.request_id, to_given_vectors(direction), norms, report))

    def send(self, command: SendDirection) -> None:
        """Puts the concept's direction into the next `take_directions`."""
        report = self._find_trained(command.concept)
        direction = self._steerer.get(command.concept)
        calibration = self._steerer.calibration
        if report is None or direction is None or calibration is None:
            self._directions.append(DirectionResult(command.request_id))
            return
        content = encode_direction(direction, report)
        encoded = msgspec.json.encode(calibration)
        self._directions.append(DirectionResult(command.request_id, content, encoded))

    def take(self, command: TakeDirection) -> None:
        """Uses a direction that another worker with the same model has trained, if it fits."""
        if command.concept in self._jobs or self.knows(command.concept):
            return
        try:
            direction, report = decode_direction(command.content)
            calibration = msgspec.json.decode(command.calibration, type=Calibration)
        except (ValueError, msgspec.DecodeError) as error:
            _log.error("a direction from another worker cannot be used: %s", error)
            return
        if direction.fits(*self._shape) and self._accept_calibration(calibration):
            self._steerer.add(command.concept, direction)
            self._reports[command.concept] = report
            self._files.save(command.concept, direction, report)

    def take_directions(self) -> list[DirectionResult]:
        """The results of `send` since the last call."""
        directions, self._directions = self._directions, []
        return directions

    def take_exports(self) -> list[VectorsResult]:
        """The results of `export` since the last call."""
        exports, self._exports = self._exports, []
        return exports

    def take_updates(self) -> list[TrainingUpdate]:
        """The updates since the last call, one per concept."""
        updates, self._updates = list(self._updates.values()), {}
        return updates

    def _next_job(self, serving: bool) -> TrainingJob | None:
        """The oldest training that a caller waits for. If none: the oldest, while no request runs."""
        jobs = self._jobs.values()
        foreground = next((job for job in jobs if not job.background), None)
        return foreground or (None if serving else next(iter(jobs), None))

    def _advance(self, job: TrainingJob) -> bool:
        """Continues the job. Returns whether it has more to compute."""
        try:
            report = job.advance()
        except UntrainableError as error:
            self._fail(job, str(error))
            return False
        except Exception:  # a bug in training must not end running requests
            _log.exception("training of concept %s failed", job.concept)
            self._fail(job)
            return False
        if report is not None:
            self._complete(job, report)
        return report is None

    def _work(self, command: TrainConcept) -> Generator[Work, None, ConceptReport]:
        if self._steerer.calibration is None:
            calibration = yield from calibrate(ProbeFactory(command), self._candidates[0][0])
            if self._steerer.calibration is None:  # another training may have done it meanwhile
                self._steerer.calibration = calibration
                self._files.save_calibration(calibration)
        publish = self._publisher(command.concept)
        calibration = self._steerer.calibration
        where = self._candidates, self._max_tokens, publish, self._refined
        return (yield from train(command, calibration, *where))

    def _publisher(self, concept: str) -> Callable[[Direction], None]:
        def publish(direction: Direction) -> None:
            job = self._jobs[concept]
            job.direction = direction
            job.state = TrainingState.MEASURING
            self._steerer.add(concept, direction)
            self._post_progress(job)

        return publish

    def _complete(self, job: TrainingJob, report: ConceptReport) -> None:
        assert job.direction is not None  # noqa: S101 - for the type checker
        del self._jobs[job.concept]
        self._reports[job.concept] = report
        self._files.save(job.concept, job.direction, report)
        self._post(TrainingUpdate(job.concept, TrainingState.READY, 1.0, report))

    def _fail(self, job: TrainingJob, detail: str = "") -> None:
        del self._jobs[job.concept]
        self._steerer.remove(job.concept)
        self._post(TrainingUpdate(job.concept, TrainingState.FAILED, job.progress, detail=detail))

    def _post_progress(self, job: TrainingJob) -> None:
        self._post(TrainingUpdate(job.concept, job.state, job.progress))

    def _post(self, update: TrainingUpdate) -> None:
        self._updates[update.concept] = update

    def _find_trained(self, concept: str) -> ConceptReport | None:
        """The report on a concept that this process or another one has trained. None if it is not trained."""
        if concept not in self._reports and concept not in self._jobs:
            self._load_trained(concept)
        return self._reports.get(concept)

    def _load_trained(self, concept: str) -> None:
        if self._steerer.calibration is None:
            self._load_calibration()
        kept = self._files.load(concept) if self._steerer.calibration else None
        if kept and kept[0].fits(*self._shape):
            direction, self._reports[concept] = kept
            self._steerer.add(concept, direction)

    def _load_calibration(self) -> None:
        """Loads the calibration that another process has saved, if it fits this model."""
        kept = self._files.load_calibration()
        if kept and self._fits(kept):
            self._steerer.calibration = kept

    def _accept_calibration(self, calibration: Calibration) -> bool:
        """Takes another worker's calibration if there is none yet. Returns whether it fits this model."""
        if self._fits(calibration) and self._steerer.calibration is None:
            self._steerer.calibration = calibration
            self._files.save_calibration(calibration)
        return self._fits(calibration)

    def _fits(self, calibration: Calibration) -> bool:
        has_all = len(calibration.norms) == self._shape[0]
        return has_all and math.isfinite(sum(calibration.norms) + calibration.cap)

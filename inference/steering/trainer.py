"""Trains concepts while requests run: hands out a few probes at a time, and takes the computed probes back.

Knows which training is next, and how far each one is. Does not know how training works or what computes the
probes.
"""

import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Generator

from inference.interface.protocol import ConceptReport, TrainConcept, TrainingState, TrainingUpdate
from inference.scheduling.probe import MAX_TOKENS_BESIDE_REQUESTS, MAX_TOKENS_IN_FLIGHT, Probe
from inference.steering.directions import Direction, DirectionFiles
from inference.steering.measurements import ProbeFactory
from inference.steering.steerer import Steerer
from inference.steering.training import UntrainableError, calibrate, estimate_tokens, train

_log = logging.getLogger(__name__)


class _Job:
    """One concept's training."""

    def __init__(self, command: TrainConcept, work: Generator[list[Probe], None, ConceptReport]) -> None:
        self.concept = command.concept
        self.background = command.background
        self.state = TrainingState.TRAINING
        self.direction: Direction | None = None
        self._work = work
        self._total = estimate_tokens(command)
        self._done = 0
        self._due: deque[Probe] = deque()
        self._out: set[Probe] = set()

    @property
    def progress(self) -> float:
        return min(self._done / self._total, 0.99)

    def advance(self) -> ConceptReport | None:
        """Continues the training if all its probes are computed. Returns the report if this ends it."""
        while not self._due and not self._out:
            try:
                self._due.extend(next(self._work))
            except StopIteration as end:
                report: ConceptReport = end.value
                return report
        return None

    def take(self, max_tokens: int, at_least: int) -> list[Probe]:
        """The next probes, up to `max_tokens` content tokens. Takes `at_least` probes, however long."""
        taken: list[Probe] = []
        while self._due and (len(taken) < at_least or len(self._due[0].content_token_ids) <= max_tokens):
            taken.append(self._due.popleft())
            max_tokens -= len(taken[-1].content_token_ids)
        self._out.update(taken)
        return taken

    def complete_probe(self, probe: Probe) -> None:
        self._out.remove(probe)
        self._done += len(probe.content_token_ids)
        if not math.isfinite(probe.mean_logprob):
            raise UntrainableError("the model's output for these examples is not finite")


class Trainer:
    def __init__(
        self,
        steerer: Steerer,
        files: DirectionFiles,
        *,
        vocab_size: int,
        max_tokens: int,
        shape: tuple[int, int],
    ) -> None:
        """`max_tokens`: limit for a prompt and a text together. `shape`: (number of layers, hidden size)."""
        self._steerer = steerer
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        self._shape = shape
        self._files = files
        self._load_calibration()
        self._reports: dict[str, ConceptReport] = {}
        self._jobs: dict[str, _Job] = {}
        self._owners: dict[Probe, _Job] = {}
        self._updates: dict[str, TrainingUpdate] = {}
        """The newest update of each concept, until `take_updates` returns it."""

    @property
    def is_idle(self) -> bool:
        return not self._jobs and not self._owners and not self._updates

    def add(self, command: TrainConcept) -> None:
        """Starts a training, unless the concept is trained or in training already."""
        if report := self._find_trained(command.concept):
            self._post(TrainingUpdate(command.concept, TrainingState.READY, 1.0, report))
            return
        if fault := self._fault(command):
            _log.error("concept %s cannot be trained: %s", command.concept, fault)
            self._post(TrainingUpdate(command.concept, TrainingState.FAILED))
            return
        if command.concept not in self._jobs:
            self._jobs[command.concept] = _Job(command, self._work(command))
        if not command.background:
            self.prioritize(command.concept)
        self._post_progress(self._jobs[command.concept])

    def prioritize(self, concept: str) -> None:
        if job := self._jobs.get(concept):
            job.background = False

    def forget(self, concept: str) -> None:
        """Deletes the concept. Posts no more updates for it, and discards its probes in flight."""
        self._updates.pop(concept, None)
        self._jobs.pop(concept, None)
        self._reports.pop(concept, None)
        self._steerer.remove(concept)
        self._files.remove(concept)

    def next_probes(self, serving: bool) -> list[Probe]:
        """The probes to compute next. Background trainings wait while the engine is `serving` requests."""
        limit = MAX_TOKENS_BESIDE_REQUESTS if serving else MAX_TOKENS_IN_FLIGHT
        room = limit - sum(len(probe.content_token_ids) for probe in self._owners)
        job = self._next_job(serving)
        if job is None or room <= 0 or not self._advance(job):
            return []
        probes = job.take(room, at_least=0 if self._owners else 1)
        self._owners.update(dict.fromkeys(probes, job))
        return probes

    def complete_probe(self, probe: Probe) -> None:
        """Takes a computed probe."""
        job = self._owners.pop(probe)
        if self._jobs.get(job.concept) is not job:
            return
        try:
            job.complete_probe(probe)
        except UntrainableError as error:
            self._fail(job, str(error))
        else:
            self._post_progress(job)

    def fail_probe(self, probe: Probe) -> None:
        """Ends the training that needs this probe, because the probe cannot be computed."""
        job = self._owners.pop(probe)
        if self._jobs.get(job.concept) is job:
            self._fail(job)

    def knows(self, concept: str) -> bool:
        """Whether requests can name the concept, because this process or another one has trained it."""
        return self._steerer.knows(concept) or self._find_trained(concept) is not None

    def take_updates(self) -> list[TrainingUpdate]:
        """The updates since the last call, one per concept."""
        updates, self._updates = list(self._updates.values()), {}
        return updates

    def _fault(self, command: TrainConcept) -> str | None:
        """What is wrong with the command, or None. A wrong command would end every request in the batch."""
        prompt = command.prompt_token_ids
        texts = [*command.positive, *command.negative, *command.neutral]
        ids = itertools.chain(prompt, *texts)
        if len(command.positive) != len(command.negative):
            return "positive and negative must have the same number of texts"
        if not all((prompt, command.positive, command.neutral, *texts)):
            return "the prompt, the examples and the neutral texts must not be empty"
        if not all(0 <= token_id < self._vocab_size for token_id in ids):
            return "a token id is not in the model's vocabulary"
        if len(prompt) + max(map(len, texts)) > self._max_tokens:
            return f"the prompt and a text together must have at most {self._max_tokens} tokens"
        return None

    def _next_job(self, serving: bool) -> _Job | None:
        """The oldest training that a caller waits for. If none: the oldest, while no request runs."""
        jobs = self._jobs.values()
        foreground = next((job for job in jobs if not job.background), None)
        return foreground or (None if serving else next(iter(jobs), None))

    def _advance(self, job: _Job) -> bool:
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

    def _work(self, command: TrainConcept) -> Generator[list[Probe], None, ConceptReport]:
        factory = ProbeFactory(command)
        blocks = self._steerer.bank.blocks
        if self._steerer.calibration is None:
            calibration = yield from calibrate(factory, blocks)
            if self._steerer.calibration is None:  # another training may have done it meanwhile
                self._steerer.calibration = calibration
                self._files.save_calibration(calibration)
        seed = int.from_bytes(command.concept.encode()[:8])
        publish = self._publisher(command.concept)
        return (yield from train(factory, self._steerer.calibration, blocks, seed, publish))

    def _publisher(self, concept: str) -> Callable[[Direction], None]:
        def publish(direction: Direction) -> None:
            job = self._jobs[concept]
            job.direction = direction
            job.state = TrainingState.MEASURING
            self._steerer.add(concept, direction)
            self._post_progress(job)

        return publish

    def _complete(self, job: _Job, report: ConceptReport) -> None:
        assert job.direction is not None  # noqa: S101 - for the type checker
        del self._jobs[job.concept]
        self._reports[job.concept] = report
        self._files.save(job.concept, job.direction, report)
        self._post(TrainingUpdate(job.concept, TrainingState.READY, 1.0, report))

    def _fail(self, job: _Job, detail: str = "") -> None:
        del self._jobs[job.concept]
        self._steerer.remove(job.concept)
        self._post(TrainingUpdate(job.concept, TrainingState.FAILED, job.progress, detail=detail))

    def _post_progress(self, job: _Job) -> None:
        self._post(TrainingUpdate(job.concept, job.state, job.progress))

    def _post(self, update: TrainingUpdate) -> None:
        self._updates[update.concept] = update

    def _find_trained(self, concept: str) -> ConceptReport | None:
        """The report on a concept that this process or another one has trained. None if it is not trained."""
        if self._steerer.calibration is None:
            self._load_calibration()
        kept = self._files.load(concept) if self._steerer.calibration else None
        if concept not in self._reports and kept and kept[0].difference.shape == self._shape:
            direction, self._reports[concept] = kept
            self._steerer.add(concept, direction)
        return self._reports.get(concept)

    def _load_calibration(self) -> None:
        """Loads the calibration that another process has saved, if it fits this model."""
        kept = self._files.load_calibration()
        if kept and len(kept.norms) == self._shape[0] and math.isfinite(sum(kept.norms) + kept.cap):
            self._steerer.calibration = kept

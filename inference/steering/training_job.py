"""One concept's training, as the trainer sees it: its state, and the work that is due or in flight."""

from collections import deque
from collections.abc import Generator

from inference.interface.concepts import ConceptReport, TrainConcept, TrainingState
from inference.scheduling.probe import Probe, TrainingWork, Work
from inference.steering.directions import Direction
from inference.steering.training import UntrainableError, estimate_tokens


class TrainingJob:
    """One concept's training."""

    def __init__(
        self, command: TrainConcept, work: Generator[Work, None, ConceptReport], refines: bool
    ) -> None:
        self.concept = command.concept
        self.background = command.background
        self.state = TrainingState.TRAINING
        self.direction: Direction | None = None
        self._work = work
        self._total = estimate_tokens(command, refines)
        self._done = 0
        self._due: deque[TrainingWork] = deque()
        self._out: set[TrainingWork] = set()

    @property
    def progress(self) -> float:
        return min(self._done / self._total, 0.99)

    def advance(self) -> ConceptReport | None:
        """Continues the training if all its work is done. Returns the report if this ends it."""
        while not self._due and not self._out:
            try:
                self._due.extend(next(self._work))
            except StopIteration as end:
                report: ConceptReport = end.value
                return report
        return None

    def take(self, max_tokens: int, at_least: int) -> list[TrainingWork]:
        """The next work, up to `max_tokens` tokens. Takes `at_least` pieces, however long."""
        taken: list[TrainingWork] = []
        while self._due and (len(taken) < at_least or self._due[0].num_tokens <= max_tokens):
            taken.append(self._due.popleft())
            max_tokens -= taken[-1].num_tokens
        self._out.update(taken)
        return taken

    def complete(self, work: TrainingWork) -> None:
        self._out.remove(work)
        self._done += work.num_tokens
        if isinstance(work, Probe) and not work.is_finite:
            raise UntrainableError("the model's output for these examples is not finite")

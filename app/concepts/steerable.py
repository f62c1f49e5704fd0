"""A served model, as far as its steering concepts are concerned."""

from collections.abc import Callable
from dataclasses import dataclass

from app.concepts.concept import Concept
from app.concepts.trainings import Training, Trainings
from app.concepts.vectors.imported import ServedModel
from app.schemas.concepts import ConceptOnModel, ConceptState
from app.schemas.reports import ConceptReport
from inference.interface.concepts import ConceptReport as WorkerReport

_UNTRAINED = ConceptOnModel(ConceptState.UNTRAINED, 0.0)


@dataclass(frozen=True)
class SteerableModel:
    identity: ServedModel
    trainings: Trainings
    present: Callable[[WorkerReport], ConceptReport]
    """Turns the worker's report into that of the API."""

    @property
    def name(self) -> str:
        return self.identity.name

    def state_of(self, concept: Concept) -> ConceptOnModel:
        """The concept's state on this model, without its report."""
        training = self.trainings.get(concept)
        return ConceptOnModel(training.state, training.progress) if training else _UNTRAINED

    def describe(self, concept: Concept) -> ConceptOnModel:
        """The concept's state on this model, with its report."""
        training = self.trainings.get(concept)
        if training is None:
            return _UNTRAINED
        report = self.present(training.report) if training.report else None
        return ConceptOnModel(training.state, training.progress, report, _message(training))


def _message(training: Training) -> str | None:
    return training.error.message if training.error else None

"""Which gateway each part of a report is for. Knows no sockets."""

from collections.abc import Callable, Iterable, Iterator

from inference.interface.concepts import (
    ExportVectors,
    ForgetConcept,
    ReadTexts,
    SendDirection,
    TrainConcept,
    TrainingState,
)
from inference.interface.protocol import Command, StepReport
from inference.interface.requests import Abort, GenerationRequest

Gateway = bytes
"""The identity that ZeroMQ knows a gateway by."""

_ENDED = (TrainingState.READY, TrainingState.FAILED)


class Routes:
    """The owners of the requests, questions and trainings in progress."""

    def __init__(self, is_active: Callable[[str], bool]) -> None:
        """`is_active`: whether the engine still has a request with this id."""
        self._is_active = is_active
        self._owners: dict[str, Gateway] = {}
        """By the id of a generation request or a question."""
        self._questions: set[str] = set()
        """The ids that are of questions. Each has one answer."""
        self._waiting: dict[str, set[Gateway]] = {}
        """By the digest of a concept in training: who gets its updates."""
        self._perhaps_ended: set[str] = set()

    def knows(self, request_id: str) -> bool:
        return request_id in self._owners

    def add(self, gateway: Gateway, command: Command) -> None:
        """Remembers who gets the reports on a command."""
        match command:
            case GenerationRequest():
                self._owners[command.request_id] = gateway
            case ExportVectors() | SendDirection() | ReadTexts():
                self._owners[command.request_id] = gateway
                self._questions.add(command.request_id)
            case TrainConcept():
                self._waiting.setdefault(command.concept, set()).add(gateway)
            case Abort():
                self._perhaps_ended.add(command.request_id)
            case ForgetConcept():
                self._waiting.pop(command.concept, None)

    def waiting_for(self, concept: str) -> set[Gateway]:
        """The gateways that wait for a concept's training."""
        return self._waiting.get(concept, set())

    def leave(self, gateway: Gateway) -> list[Abort]:
        """Forgets a gateway. Returns what ends its requests and readings."""
        for waiting in self._waiting.values():
            waiting.discard(gateway)
        ids = [request_id for request_id, owner in self._owners.items() if owner == gateway]
        for request_id in ids:
            self._forget(request_id)
        return [Abort(request_id) for request_id in ids]

    def split(self, report: StepReport, everyone: Iterable[Gateway]) -> Iterator[tuple[Gateway, StepReport]]:
        """The report's parts, by gateway, in no order. `everyone`: the gateways, who all get the stats."""
        parts: dict[Gateway, StepReport] = {}

        def part(gateway: Gateway) -> StepReport:
            return parts.setdefault(gateway, StepReport())

        for gateway in everyone if report.stats else ():
            parts[gateway] = StepReport(stats=report.stats)
        for field in ("submit_results", "events", "failures", "vectors", "directions", "readings"):
            for item in getattr(report, field):
                if owner := self._owners.get(item.request_id):
                    getattr(part(owner), field).append(item)
        for request_id, seconds in report.starts.items():
            if owner := self._owners.get(request_id):
                part(owner).starts[request_id] = seconds
        for update in report.training:
            for gateway in self.waiting_for(update.concept):
                part(gateway).training.append(update)
        self._forget_ended(report)
        return iter(parts.items())

    def _forget_ended(self, report: StepReport) -> None:
        for update in report.training:
            if update.state in _ENDED:
                self._waiting.pop(update.concept, None)
        self._perhaps_ended.update(each.request_id for each in report.vectors)
        self._perhaps_ended.update(each.request_id for each in report.directions)
        self._perhaps_ended.update(each.request_id for each in report.readings)
        refused = [result for result in report.submit_results if result.refusal]
        self._perhaps_ended.update(result.request_id for result in refused)
        self._perhaps_ended.update(each.request_id for each in report.failures)
        self._perhaps_ended.update(each.request_id for each in report.events if each.finish_reason)
        for request_id in self._perhaps_ended:
            if request_id in self._questions or not self._is_active(request_id):
                self._forget(request_id)
        self._perhaps_ended.clear()

    def _forget(self, request_id: str) -> None:
        self._owners.pop(request_id, None)
        self._questions.discard(request_id)

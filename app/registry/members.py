"""The workers and gateways that a registry has heard lately. Knows no sockets."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from inference.interface.registry import SILENT_SECONDS, ModelLoad

Member = bytes
"""The identity that ZeroMQ knows a member by."""


@dataclass
class Worker:
    model: str
    address: str
    heard: float


@dataclass
class Gateway:
    url: str
    heard: float
    loads: dict[str, ModelLoad] = field(default_factory=dict)
    """By the name of the model."""


class Members:
    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: seconds, never set back."""
        self._clock = clock
        self.workers: dict[Member, Worker] = {}
        self.gateways: dict[Member, Gateway] = {}

    def announce(self, member: Member, model: str, address: str) -> bool:
        """Notes a worker. Returns whether it is new."""
        known = self.workers.get(member)
        self.workers[member] = Worker(model, address, self._clock())
        return known is None or (known.model, known.address) != (model, address)

    def join(self, member: Member, url: str) -> None:
        """Notes a gateway."""
        self.gateways[member] = Gateway(url, self._clock())

    def hear(self, gateway: Member) -> None:
        """Notes that a gateway is there."""
        self.gateways[gateway].heard = self._clock()

    def silent(self) -> list[Member]:
        """Those from which nothing was heard for too long."""
        oldest = self._clock() - SILENT_SECONDS
        workers = [member for member, worker in self.workers.items() if worker.heard < oldest]
        return workers + [member for member, gateway in self.gateways.items() if gateway.heard < oldest]

    def addresses(self) -> dict[str, list[str]]:
        """Model -> addresses of its workers, each once."""
        found: dict[str, list[str]] = {}
        for worker in self.workers.values():
            addresses = found.setdefault(worker.model, [])
            if worker.address not in addresses:
                addresses.append(worker.address)
        return found

    def loads(self) -> dict[str, ModelLoad]:
        """The load of each model. Every gateway sees the same workers; the one that sees most counts."""
        models = {model for gateway in self.gateways.values() for model in gateway.loads}
        return {model: max(self._seen(model), key=_busy) for model in models}

    def _seen(self, model: str) -> Iterable[ModelLoad]:
        return (gateway.loads[model] for gateway in self.gateways.values() if model in gateway.loads)


def _busy(load: ModelLoad) -> tuple[int, int, int]:
    return load.workers, load.waiting, load.running

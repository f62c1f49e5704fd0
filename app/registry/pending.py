"""Changes that gateways do not know yet. Knows no sockets."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from app.registry.members import Member

WAIT_SECONDS = 2.0
"""A change counts as known after this time. A gateway that is slower knows it before anything later."""


@dataclass(frozen=True)
class Change:
    asked_by: Member
    request_id: int
    unaware: set[Member]
    """The gateways that have not noted it."""
    deadline: float


class PendingChanges:
    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: seconds, never set back."""
        self._clock = clock
        self._changes: dict[int, Change] = {}
        self._count = 0

    def add(self, asked_by: Member, request_id: int, unaware: Iterable[Member]) -> int:
        """Returns the change's number, from 1 on."""
        self._count += 1
        deadline = self._clock() + WAIT_SECONDS
        self._changes[self._count] = Change(asked_by, request_id, set(unaware), deadline)
        return self._count

    def note(self, gateway: Member, change: int) -> None:
        if change in self._changes:
            self._changes[change].unaware.discard(gateway)

    def forget(self, gateway: Member) -> None:
        """A gateway is gone."""
        for change in self._changes.values():
            change.unaware.discard(gateway)

    def take_known(self) -> list[Change]:
        """The changes that all gateways know, or for which the time is over. Returns each once."""
        now = self._clock()
        known = [
            number for number, change in self._changes.items() if not change.unaware or change.deadline <= now
        ]
        return [self._changes.pop(number) for number in known]

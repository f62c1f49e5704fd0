"""Which actors to start and which to stop, for a group of equal ones. Pure functions, without Ray."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.cluster.structures import Kind


@dataclass(frozen=True)
class Name:
    """The name of an actor. It says all that a new controller has to know."""

    kind: Kind
    number: int
    digest: str
    model: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}:{self.digest}:{self.model}"


def parse_name(text: str) -> Name | None:
    """None: the actor is none of ours, or the controller."""
    match text.split(":", 3):
        case ["registry" | "worker" | "gateway" as kind, number, digest, model] if number.isdecimal():
            return Name(kind, int(number), digest, model)
    return None


@dataclass(frozen=True)
class Member:
    name: Name
    serving: bool
    failed: bool = False
    """Whether its process has ended and waits for another start, or it has no place."""
    stopping: bool = False


@dataclass(frozen=True)
class Changes:
    create: Sequence[int] = ()
    """The numbers of new members."""
    stop: Sequence[Name] = ()


def next_changes(members: Sequence[Member], count: int, digest: str) -> Changes:
    """What brings a group nearer to `count` members with this digest.

    A member that is stopping has its place until it is gone. Members with another digest are replaced one at
    a time, when all others serve; those that do not work are replaced at once.
    """
    current = [each for each in members if not each.stopping and each.name.digest == digest]
    outdated = [each for each in members if not each.stopping and each.name.digest != digest]
    stopping = len(members) - len(current) - len(outdated)
    stop = _surplus(current, count)
    stop += [each for each in outdated if each.failed]
    working = [each for each in outdated if not each.failed]
    missing = max(0, count - len(members)) if len(current) < count else 0
    if working and not stopping and not missing and all(each.serving for each in current):
        stop.append(max(working, key=lambda each: each.name.number))
    return Changes(_free_numbers(members, missing), [each.name for each in stop])


def _surplus(current: Sequence[Member], count: int) -> list[Member]:
    """Those that serve stay; of equal ones, those with the smallest numbers."""
    order = sorted(current, key=lambda each: (not each.serving, each.name.number))
    return order[count:]


def _free_numbers(members: Sequence[Member], count: int) -> list[int]:
    taken = {each.name.number for each in members}
    numbers = (number for number in range(1, len(taken) + count + 1) if number not in taken)
    return [number for number, _ in zip(numbers, range(count), strict=False)]

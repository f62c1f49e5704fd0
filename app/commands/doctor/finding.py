"""What a check has found."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """A server runs, but worse than it could."""
    PROBLEM = "problem"
    """A server does not start, or fails requests."""


@dataclass(frozen=True)
class Finding:
    level: Level
    what: str
    """One line that describes what is there."""
    mend: str = ""
    """What to do about it. Empty if all is well."""


Found = tuple[str, Finding]
"""The name of a check, and what it has found."""


def ok(what: str) -> Finding:
    return Finding(Level.OK, what)


def warning(what: str, mend: str) -> Finding:
    return Finding(Level.WARNING, what, mend)


def problem(what: str, mend: str) -> Finding:
    return Finding(Level.PROBLEM, what, mend)


def readable_size(size: float) -> str:
    """A number of bytes in a unit that makes it easy to read."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"

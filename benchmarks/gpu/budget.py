"""Time limits. Knows nothing of what is measured. Imports only the standard library."""

import time
from dataclasses import dataclass


class OutOfTimeError(Exception):
    """The time of a part is over. What was measured before stays valid."""


@dataclass(frozen=True)
class Deadline:
    """A moment of `time.monotonic`, which all processes of a machine share."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    @property
    def seconds_left(self) -> float:
        return self.at - time.monotonic()

    def check(self) -> None:
        """Raises OutOfTimeError after the deadline."""
        if self.seconds_left <= 0:
            raise OutOfTimeError

    def at_most(self, seconds: float) -> "Deadline":
        """This deadline, or the moment in `seconds` from now if that is earlier."""
        return Deadline(min(self.at, time.monotonic() + seconds))

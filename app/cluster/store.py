"""The plan on the head node's disk, so that a controller that Ray starts again finds it."""

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from app.cluster.structures import Plan, pack, unpack
from inference.interface.files import write_atomically


class StoredPlan(msgspec.Struct, frozen=True):
    """A plan, with what `tiller cluster scale` has changed."""

    plan: Plan
    fixed: dict[str, int]
    """Model -> number of workers."""


class PlanStore:
    """A file that only this user can read: the plan contains the worker key."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> StoredPlan | None:
        """None: there is no plan, or one of another version of Tiller. Raises OSError."""
        with suppress(FileNotFoundError, msgspec.MsgspecError):
            return unpack(self._path.read_bytes(), StoredPlan)
        return None

    def save(self, plan: StoredPlan) -> None:
        """Raises OSError."""
        write_atomically(self._path, pack(plan))

    def remove(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._path)

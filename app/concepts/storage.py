"""Where created concepts are kept: on this server's disk, or by a registry that several servers share."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from anyio import to_thread

from app.concepts.concept import Concept
from app.concepts.store import ConceptStore
from app.errors import ApiError, ErrorCode
from app.schemas.concepts import ConceptProblem

_log = logging.getLogger(__name__)


class Storage(Protocol):
    @property
    def problems(self) -> list[ConceptProblem]:
        """The concept files that cannot be used."""

    def load(self) -> list[Concept]:
        """All concepts that are known at the start of the server, shipped ones first."""

    async def write(self, concept: Concept) -> None:
        """Keeps a concept for good. Raises UNAVAILABLE, or CONFLICT if another one has its id."""

    async def remove(self, concept: Concept) -> None:
        """Removes a concept for good. Raises UNAVAILABLE."""


class LocalStorage:
    """Implements Storage on this server's disk. Works on other threads, one operation at a time."""

    def __init__(self, store: ConceptStore) -> None:
        self._store = store
        self._lock = asyncio.Lock()

    @property
    def problems(self) -> list[ConceptProblem]:
        return self._store.problems

    def load(self) -> list[Concept]:
        return self._store.load()

    async def write(self, concept: Concept) -> None:
        await self._run(lambda: self._store.write(concept), "stored")

    async def remove(self, concept: Concept) -> None:
        await self._run(lambda: self._store.remove(concept), "deleted")

    async def _run(self, act: Callable[[], None], what: str) -> None:
        """`what`: "stored" or "deleted", for error messages."""
        try:
            async with self._lock:
                await to_thread.run_sync(act)
        except OSError:
            _log.exception("a concept cannot be %s", what)
            raise ApiError(ErrorCode.UNAVAILABLE, f"the concept cannot be {what}") from None

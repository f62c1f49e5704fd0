"""Keeps created concepts in the registry, and learns of those of other servers."""

import logging

from anyio import to_thread

from app.concepts.concept import Concept
from app.concepts.concepts import Concepts
from app.concepts.store import ConceptStore, decode, encode, file_name
from app.registry.client import RegistryClient
from app.schemas.concepts import ConceptProblem
from inference.interface.registry import Remove, Store

_log = logging.getLogger(__name__)


class SharedStorage:
    """Implements app.concepts.storage.Storage."""

    def __init__(self, client: RegistryClient, shipped: ConceptStore) -> None:
        """`shipped`: only has shipped concepts."""
        self._client = client
        self._shipped = shipped

    @property
    def problems(self) -> list[ConceptProblem]:
        return self._shipped.problems

    def load(self) -> list[Concept]:
        """The created concepts follow, once the server has joined the registry."""
        return self._shipped.load()

    async def write(self, concept: Concept) -> None:
        content = await to_thread.run_sync(encode, concept)
        await self._client.ask(lambda number: Store(number, file_name(concept), content))

    async def remove(self, concept: Concept) -> None:
        await self._client.ask(lambda number: Remove(number, concept.id))


class ConceptListener:
    """Implements app.registry.client.Listener: keeps a server's concepts equal to those of the registry."""

    def __init__(self, concepts: Concepts) -> None:
        self._concepts = concepts

    async def stored(self, name: str, content: bytes) -> None:
        try:
            concept = await to_thread.run_sync(decode, name, content)
        except ValueError as error:
            _log.error("the registry's concept file %s cannot be used: %s", name, error)
        else:
            self._concepts.adopt(concept)

    async def removed(self, concept: str) -> None:
        self._concepts.discard(concept)

    async def joined(self, concepts: list[str]) -> None:
        self._concepts.keep_only(concepts)

"""A concept as a caller holds it: a name, a report, and the content of its file. Knows no engine."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.concepts.concept import Example
from app.concepts.vectors.formats import read_vector_file
from app.schemas.concepts import ID_PREFIX
from app.schemas.reports import ConceptReport
from inference.interface.files import write_atomically
from tiller.errors import as_python_errors


@dataclass(frozen=True, eq=False)
class Concept:
    """A steering concept. `LLM.train`, `LLM.concept`, `LLM.add` and `Concept.load` make one.

    The vectors belong to the model that they were made with. An LLM of another model refuses them.
    """

    name: str
    """The name in `steering` and `readings`. The Concept itself may stand there as well."""
    description: str = ""
    """A text for people."""
    examples: tuple[Example, ...] = field(default=(), repr=False)
    """The contrastive pairs that it was made from or measured with. Empty: not known."""
    report: ConceptReport | None = field(default=None, repr=False)
    """How well it works on its model, as docs/steering.md explains. None: loaded, but not yet added to an
    LLM."""
    content: bytes = field(default=b"", repr=False)
    """What `save` writes."""

    def save(self, path: str | Path) -> None:
        """Writes the vectors to a safetensors file, the same as `GET /steering_concepts/{id}/vectors`.

        The file has a tensor `direction.N` of unit length [hidden_size] for each steered decoder block N. It
        replaces an older file only once it is complete. Raises OSError.
        """
        write_atomically(Path(path), self.content, mode=0o644)

    @classmethod
    def load(cls, path: str | Path, name: str | None = None) -> "Concept":
        """Reads a file of `save`, or a control vector that llama.cpp, repeng or EasySteer has made.

        These are GGUF or safetensors with tensors `direction.N`. Hand the concept to `LLM.add` before you use
        it. `name`: default is the name in the file, or else the file's name without its suffix. Raises
        OSError, and InvalidRequestError (a ValueError) for any other file; a pickle is never read.
        """
        content = Path(path).read_bytes()
        with as_python_errors():
            metadata = read_vector_file(content).metadata
        found = metadata.get("id") or metadata.get("name") or Path(path).stem
        return cls((name or found).removeprefix(ID_PREFIX), metadata.get("description", ""), content=content)

    def __str__(self) -> str:
        return f"{self.name}: {self.report.summary if self.report else 'not measured'}"


def name_of(concept: Any) -> Any:
    """The name of a concept. Returns anything else as it is."""
    return concept.name if isinstance(concept, Concept) else concept

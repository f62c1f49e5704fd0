"""Reads and writes the files of shipped and created concepts. Knows no model and no tokens."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
import yaml

from app.concepts.concept import Concept, Example, digest_of, is_id, names_other_content
from app.concepts.vectors import stored_file
from app.concepts.vectors.imported import ImportedVectors, VectorsRecord
from app.schemas.concepts import ID_PREFIX, NAME_PATTERN, ConceptProblem
from inference.interface.files import TEMPORARY, sync_directory, write_atomically

_log = logging.getLogger(__name__)

_LONGEST_REASON = 200


class ConceptStore:
    """A directory of shipped concepts, one YAML file each, and one of created concepts, one file each.

    A created concept's file is JSON with its examples, or safetensors with its imported vectors. The store
    only reads and writes files. The caller keeps the list of concepts.
    """

    def __init__(self, shipped: Path | None = None, created: Path | None = None) -> None:
        """Either directory may be missing. None: there are no such concepts."""
        self._shipped = shipped
        self._created = created
        self.problems: list[ConceptProblem] = []

    def load(self) -> list[Concept]:
        """All valid concepts, shipped ones first. Adds each invalid file to `problems` and logs a warning."""
        self._clean_up()
        return self.read()

    def read(self) -> list[Concept]:
        """Like `load`, but removes nothing, so that it can run beside a server that writes."""
        concepts = {concept.id: concept for concept in self._read(self._shipped, ".yaml", _read_shipped)}
        created = [
            *self._read(self._created, ".json", _read_created),
            *self._read(self._created, stored_file.SUFFIX, _read_imported),
        ]
        for concept in sorted(created, key=lambda concept: (concept.created, concept.id)):
            if concepts.setdefault(concept.id, concept) is not concept:
                self._report(self._file(concept).name, "another concept of this name is used instead")
        return list(concepts.values())

    def write(self, concept: Concept) -> None:
        """Writes a concept's file, which then survives a loss of power. On OSError no new file is left."""
        target, content = self._file(concept), encode(concept)
        try:
            write_atomically(target, content)
        except BaseException:
            with suppress(OSError):
                if target.read_bytes() == content:  # not an older file, which a failed write leaves in place
                    target.unlink()
            raise
        self.problems = [problem for problem in self.problems if problem.file != target.name]

    def remove(self, concept: Concept) -> None:
        """Deletes a created concept's file, even if power is lost right after this. Raises OSError."""
        with suppress(FileNotFoundError):
            self._file(concept).unlink()
        with suppress(FileNotFoundError):
            sync_directory(self._file(concept).parent)

    def _file(self, concept: Concept) -> Path:
        assert self._created is not None  # noqa: S101 - for the type checker: somebody creates concepts
        return self._created / file_name(concept)

    def _clean_up(self) -> None:
        """Deletes temporary files that a killed process has left."""
        with suppress(OSError):
            for file in self._created.glob(TEMPORARY) if self._created else ():
                file.unlink()

    def _read(
        self, directory: Path | None, suffix: str, read: Callable[[Path], Concept]
    ) -> Iterator[Concept]:
        for file in self._files(directory, suffix) if directory else ():
            try:
                yield read(file)
            except (OSError, ValueError, RecursionError, yaml.YAMLError, msgspec.MsgspecError) as error:
                self._report(file.name, _explain(error))

    def _files(self, directory: Path, suffix: str) -> list[Path]:
        try:
            files = sorted(directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            self._report(directory.name, _explain(error))
            return []
        return [file for file in files if file.suffix == suffix and not file.name.startswith(".")]

    def _report(self, file: str, reason: str) -> None:
        name = os.fsencode(file).decode(errors="replace")
        _log.warning("concept file %s is left out: %s", name, reason)
        self.problems.append(ConceptProblem(name, reason))


def file_name(concept: Concept) -> str:
    """Of a created concept."""
    suffix = stored_file.SUFFIX if concept.vectors else ".json"
    return concept.id.removeprefix(ID_PREFIX) + suffix


def encode(concept: Concept) -> bytes:
    """The content of a created concept's file."""
    facts = (concept.id.removeprefix(ID_PREFIX), concept.description, concept.created, concept.examples)
    if concept.vectors is None:
        return msgspec.json.encode(_CreatedFile(*facts))
    record = concept.vectors.record
    content = msgspec.json.encode(_ImportedRecord(*facts, record))
    return stored_file.encode(content, concept.vectors.read_values(), len(record.given.blocks))


def decode(name: str, content: bytes) -> Concept:
    """A created concept from the name and the content of its file. Raises ValueError."""
    try:
        if name.endswith(stored_file.SUFFIX):
            return _imported(
                Path(name), stored_file.record_of(content), lambda: stored_file.values_of(content)
            )
        return _created(Path(name), content)
    except (RecursionError, msgspec.MsgspecError) as error:
        raise ValueError(_explain(error)) from None


class _ShippedFile(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    examples: tuple[Example, ...]
    description: str = ""


class _CreatedFile(msgspec.Struct):
    name: str
    description: str
    created: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    examples: tuple[Example, ...]


class _ImportedRecord(_CreatedFile):
    vectors: VectorsRecord


def _read_shipped(path: Path) -> Concept:
    content = yaml.safe_load(_read_bytes(path).decode())
    file = msgspec.convert(content, _ShippedFile)
    created = int(path.stat().st_mtime)
    concept = Concept(ID_PREFIX + file.name, file.description, file.examples, created, shipped=True)
    return _checked(path, concept)


def _read_created(path: Path) -> Concept:
    return _created(path, _read_bytes(path))


def _created(path: Path, content: bytes) -> Concept:
    file = msgspec.json.decode(content, type=_CreatedFile)
    return _checked(path, Concept(ID_PREFIX + file.name, file.description, file.examples, file.created))


def _read_imported(path: Path) -> Concept:
    _check_regular(path)
    return _imported(path, stored_file.read_record(path), lambda: stored_file.values_of(path.read_bytes()))


def _imported(path: Path, record: str, read_values: Callable[[], bytes]) -> Concept:
    file = msgspec.json.decode(record, type=_ImportedRecord)
    examples_digest = digest_of(file.examples) if file.examples else ""
    vectors = ImportedVectors(file.vectors, read_values, examples_digest)
    concept = Concept(ID_PREFIX + file.name, file.description, file.examples, file.created, vectors=vectors)
    return _checked(path, concept)


def _read_bytes(path: Path) -> bytes:
    _check_regular(path)
    return path.read_bytes()


def _check_regular(path: Path) -> None:
    if path.exists() and not path.is_file():  # opening a pipe would block forever
        raise ValueError("is not a regular file")


def _checked(path: Path, concept: Concept) -> Concept:
    """Returns the concept. Raises ValueError if it breaks a rule.

    That includes a lone surrogate in a text: YAML can express one, but UTF-8 cannot encode it.
    """
    concept.description.encode()
    if not is_id(concept.id):
        raise ValueError(f"its name must match {NAME_PATTERN}")
    if concept.id != ID_PREFIX + path.stem:
        raise ValueError("its name must equal the file's name without the suffix")
    if not (concept.examples or concept.vectors):
        raise ValueError("it has no examples")
    for position, example in enumerate(concept.examples):
        texts = (example.positive, example.negative, *([] if example.prompt is None else [example.prompt]))
        if not all(text.strip() for text in texts):
            raise ValueError(f"examples[{position}] has a blank text")
        if example.positive == example.negative:
            raise ValueError(f"examples[{position}] has the same text twice")
    if names_other_content(concept):
        raise ValueError("its name is a digest, but not the digest of its examples or vectors")
    return concept


def _explain(error: Exception) -> str:
    """A short reason, without the file's path."""
    match error:
        case OSError():
            reason = f"cannot be read: {error.strerror}"
        case UnicodeError():
            reason = "contains text that is not valid UTF-8"
        case RecursionError():
            reason = "is nested too deeply"
        case yaml.MarkedYAMLError(problem_mark=yaml.Mark() as mark):
            reason = f"is not valid YAML: line {mark.line + 1}: {error.problem}"
        case yaml.YAMLError():
            reason = "is not valid YAML"
        case _:
            reason = str(error)
    return " ".join(reason.split())[:_LONGEST_REASON]

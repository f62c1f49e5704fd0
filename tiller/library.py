"""The concepts that an LLM knows, and their training."""

import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from app.concepts import concept as definitions
from app.concepts.concept import Example, digest_of, names_other_content
from app.concepts.examples import ExampleEncoder
from app.concepts.reports import present
from app.concepts.store import ConceptStore
from app.concepts.texts import ConceptTexts
from app.concepts.vectors.formats import read_vector_file
from app.concepts.vectors.imported import ServedModel
from app.concepts.vectors.importing import import_vectors
from app.concepts.vectors.tiller_file import Provenance, write_tiller_file
from app.errors import ApiError, ErrorCode, InternalError, InvalidRequest, shorten
from app.schemas.concepts import ID_PREFIX, NAME_PATTERN, ConceptRequest, full_id
from app.schemas.reports import ConceptReport
from inference.interface.concepts import ExportVectors, TrainingState, TrainingUpdate
from tiller.concept import Concept
from tiller.model import LoadedModel

_NOT_THERE = "created-concepts"
"""The store also reads a directory of created concepts. Here there is none: `Concept.save` has any path."""

OnProgress: TypeAlias = Callable[[str, float], None]
"""Called with the state of a training ("training", "measuring", "ready") and its progress, 0 to 1."""


class Library:
    """Definitions of concepts by id, and the concepts that are trained. Thread-safe."""

    def __init__(self, model: LoadedModel, directory: Path) -> None:
        """Reads the concepts in a directory, which may be missing. The methods raise ApiError."""
        self._model = model
        self._served = ServedModel.of(model.settings.model.name, model.info)
        longest = model.info.context_length
        limit = model.settings.limits.max_concept_tokens
        texts = ConceptTexts(model.tokenizer, model.prompts, model.info.vocab_size)
        questions = model.settings.steering.questions
        self._encoder = ExampleEncoder(texts, self._served, longest, limit, model.end_token_ids, questions)
        found = ConceptStore(directory, directory / _NOT_THERE).load()
        self._definitions = {definition.id: definition for definition in found}
        self._trained: dict[str, Concept] = {}
        """By digest."""
        self._training = threading.RLock()

    @property
    def names(self) -> list[str]:
        return [concept_id.removeprefix(ID_PREFIX) for concept_id in list(self._definitions)]

    def find(self, name: str, param: str | None = None) -> definitions.Concept:
        """`param`: the argument that names the concept."""
        definition = self._definitions.get(full_id(name))
        if definition is None:
            known = ", ".join(sorted(self.names)) or "none"
            message = (
                f"concept {shorten(name.removeprefix(ID_PREFIX))} is unknown; the known ones are: {known}"
            )
            raise ApiError(ErrorCode.UNKNOWN_STEERING_CONCEPT, message, param)
        return definition

    def make_usable(self, used: Iterable[definitions.Concept]) -> None:
        """Trains those of the concepts that are not trained yet."""
        for definition in used:
            self.train(definition)

    def train(self, definition: definitions.Concept, on_progress: OnProgress | None = None) -> Concept:
        """Trains and measures a concept, unless this has been done, and exports its vectors."""
        with self._training:
            trained = self._trained.get(definition.digest)
            if trained is None or trained.name != definition.id.removeprefix(ID_PREFIX):
                report = self._measure(definition, on_progress)
                trained = self._trained[definition.digest] = self._export(definition, report)
            return trained

    def enter(self, definition: definitions.Concept, on_progress: OnProgress | None = None) -> Concept:
        """Trains a concept, and makes it known to requests. It replaces another one of its name."""
        if names_other_content(definition):
            raise InvalidRequest("name is a digest, but not the digest of these examples or vectors", "name")
        concept = self.train(definition, on_progress)
        self._definitions[definition.id] = definition
        return concept

    def define(self, examples: Collection[Any], name: str | None, description: str) -> definitions.Concept:
        """A concept that is to be made from examples. Raises pydantic's ValidationError."""
        wanted = self._check(examples, name, description)
        pairs = tuple(Example(pair.positive, pair.negative, pair.prompt) for pair in wanted.examples)
        concept_id = full_id(wanted.name or digest_of(pairs))
        return definitions.Concept(concept_id, description, pairs, int(time.time()))

    def define_imported(self, concept: Concept, examples: Collection[Any]) -> definitions.Concept:
        """A concept whose vectors are in its content, to be measured with the examples if there are some."""
        if not definitions.is_id(full_id(concept.name)):
            rule = f"must match {NAME_PATTERN}"
            raise InvalidRequest(f"the name of the concept {rule}, got {shorten(concept.name)}", "name")
        file = read_vector_file(concept.content)
        pairs: tuple[Example, ...] = ()
        if examples:
            pairs = self.define(examples, concept.name, concept.description).examples
        vectors = import_vectors(file, self._served, digest_of(pairs) if pairs else "")
        return definitions.Concept(
            full_id(concept.name), concept.description, pairs, int(time.time()), vectors=vectors
        )

    def _check(self, examples: Collection[Any], name: str | None, description: str) -> ConceptRequest:
        content = {"examples": list(examples), "name": name, "description": description}
        return ConceptRequest.model_validate(content, context=self._model.settings)

    def _measure(self, definition: definitions.Concept, on_progress: OnProgress | None) -> ConceptReport:
        def pass_on(update: TrainingUpdate) -> None:
            if on_progress and update.state is not TrainingState.FAILED:
                on_progress(update.state.value, update.progress)

        last = self._model.driver.train(self._encoder.encode(definition), pass_on)
        if last.report is None:
            name = definition.id.removeprefix(ID_PREFIX)
            detail = f"concept {name} cannot be used with this model: {last.detail}"
            raise InvalidRequest(detail) if last.detail else InternalError("the training failed")
        return present(last.report, self._model.tokenizer)

    def _export(self, definition: definitions.Concept, report: ConceptReport) -> Concept:
        result = self._model.driver.export(ExportVectors(uuid.uuid4().hex, definition.digest))
        if result.vectors is None:
            raise InternalError("the engine has lost the concept")
        imported = definition.vectors
        provenance = Provenance(
            id=definition.id,
            description=definition.description,
            examples_digest=imported.record.given.pairs_digest if imported else definition.digest,
            num_examples=len(definition.examples),
            created=definition.created,
        )
        return Concept(
            name=definition.id.removeprefix(ID_PREFIX),
            description=definition.description,
            examples=definition.examples,
            report=report,
            content=write_tiller_file(result, provenance, self._served),
        )


def as_examples(pairs: Iterable[Any], prompts: str | Iterable[str | None] | None) -> list[dict[str, Any]]:
    """Pairs as the API has them. A prompt of its own takes precedence over the one in `prompts`.

    Raises InvalidRequest if a pair is of another kind, or if there is not one prompt for each pair.
    """
    examples = [_as_example(pair, f"examples[{position}]") for position, pair in enumerate(pairs)]
    if prompts is None:
        return examples
    each = [prompts] * len(examples) if isinstance(prompts, str) else list(prompts)
    if len(each) != len(examples):
        rule = f"prompts must have as many entries as there are pairs, {len(examples)}, got {len(each)}"
        raise InvalidRequest(rule, "prompts")
    return [{"prompt": prompt, **example} for prompt, example in zip(each, examples, strict=True)]


def _as_example(pair: Any, path: str) -> dict[str, Any]:
    match pair:
        case Example():
            fields = {"positive": pair.positive, "negative": pair.negative, "prompt": pair.prompt}
        case Mapping():
            fields = dict(pair)
            if unknown := fields.keys() - set(Example.__struct_fields__):
                rule = "must have the keys positive, negative and perhaps prompt"
                raise InvalidRequest(f"{path} {rule}, got {shorten(min(unknown, key=str))}", path)
        case (positive, negative):
            fields = {"positive": positive, "negative": negative}
        case _:
            rule = "must be a pair (positive, negative), a dictionary or an Example"
            raise InvalidRequest(f"{path} {rule}, got {shorten(pair)}", path)
    return {name: value for name, value in fields.items() if value is not None}

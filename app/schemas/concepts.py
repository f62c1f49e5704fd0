"""Requests and answers of the routes for steering concepts.

Validate a ConceptRequest with the operator's Settings as the context.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from pydantic import (
    AfterValidator,
    FailFast,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from app.schemas.base import RequestModel, rule_error, settings_of
from app.schemas.reports import ConceptReport

ID_PREFIX = "_worker/"
NAME_PATTERN = "[a-zA-Z0-9-_]{1,64}"
"""For a whole name: use it with re.fullmatch."""
MAX_DESCRIPTION = 1000
"""In characters."""
ID_PATTERN = f"^({ID_PREFIX})?{NAME_PATTERN}$"


def full_id(given: str) -> str:
    """Returns the id of a concept, which begins with `_worker/`. The given id may lack this prefix."""
    return ID_PREFIX + given.removeprefix(ID_PREFIX)


def _check_text(text: str, info: ValidationInfo) -> str:
    limit = settings_of(info).limits.max_example_characters
    if len(text) > limit:
        raise rule_error(f"must have at most {limit} characters", text)
    if not text.strip():
        raise rule_error("must not be blank", text)
    return text


# Matches a text that str.strip() does not empty. In other languages, \s lacks some of these characters.
_NOT_BLANK = r"[^\s\x1c-\x1f\x85]"

ExampleText = Annotated[str, AfterValidator(_check_text), Field(json_schema_extra={"pattern": _NOT_BLANK})]
ConceptId = Annotated[str, StringConstraints(pattern=ID_PATTERN)]


class PairedExample(RequestModel):
    """A contrastive pair. The model reads both texts as answers of the assistant. They must differ."""

    positive: ExampleText
    """A text that shows the concept."""
    negative: ExampleText
    """A similar text that lacks the concept or shows its opposite."""
    prompt: ExampleText | None = None
    """The user message before both texts, such as a question that both answer. Default: "Tell me
    something."."""

    @model_validator(mode="after")
    def _check_difference(self) -> "PairedExample":
        if self.positive == self.negative:
            raise rule_error("must differ from positive", self.negative, "negative")
        return self


class ConceptRequest(RequestModel):
    """The body of POST /steering_concepts. Fields that are not listed here are ignored."""

    examples: Annotated[list[PairedExample], Field(min_length=1), FailFast()]
    """The contrastive pairs that the concept is trained on and measured with."""
    name: ConceptId | None = None
    """The concept's name, with or without `_worker/`. Default: the SHA-256 digest of the examples, in hex.
    The concept's id is `_worker/` followed by the name."""
    description: Annotated[str, StringConstraints(max_length=MAX_DESCRIPTION)] = ""
    """A text for people. The server only stores and returns it."""
    model: str | None = None
    """The name of the model to train the concept on, as `GET /models` lists it. Default: all models."""

    @field_validator("examples", mode="before")
    @classmethod
    def _check_count(cls, examples: Any, info: ValidationInfo) -> Any:
        """Runs before the examples are validated, because a request may contain very many of them."""
        limit = settings_of(info).limits.max_examples
        if isinstance(examples, list) and not 1 <= len(examples) <= limit:
            raise rule_error(f"must have 1 to {limit} items", len(examples))
        return examples


class ConceptState(StrEnum):
    """The state of a concept on a model. Requests can be steered by it from `measuring` on."""

    UNTRAINED = "untrained"
    TRAINING = "training"
    MEASURING = "measuring"
    READY = "ready"
    FAILED = "failed"


class ConceptOnModel(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of a concept on one of several models."""

    state: ConceptState
    """The state on this model."""
    progress: float
    """Completed share of training and measuring, 0 to 1."""
    report: ConceptReport | None = None
    """How well the concept works on this model. Only in the state `ready`, and not in lists."""
    error: str | None = None
    """Why the training on this model failed. Only in the state `failed`, and not in lists."""


class ConceptCard(msgspec.Struct, frozen=True, kw_only=True):
    """A steering concept without its report."""

    id: str
    """`_worker/` and the concept's name."""
    object: Literal["steering_concept"] = "steering_concept"
    """Always `steering_concept`."""
    created: int
    """Seconds since 1970."""
    description: str
    """The text for people that was given when the concept was created."""
    num_examples: int
    """The number of its contrastive pairs. It may be 0 if the concept is imported."""
    imported: bool
    """Whether it was made from imported vectors. Then it can be used only with the model that these belong
    to."""
    shipped: bool
    """Whether the concept came with the server, so that it cannot be deleted."""
    state: ConceptState
    """The state on the model. A request that names the concept before `measuring` waits."""
    progress: float
    """Completed share of training and measuring, 0 to 1."""
    models: dict[str, ConceptOnModel] | msgspec.UnsetType = msgspec.UNSET
    """The state on each model, by the model's name. Only if the server has several models and the request
    names none. Then the fields beside it are those of the first model."""


class ConceptExample(msgspec.Struct, frozen=True, omit_defaults=True):
    """A contrastive pair, as it was given when the concept was created."""

    positive: str
    """The text that shows the concept."""
    negative: str
    """The text that lacks it or shows its opposite."""
    prompt: str | None = None
    """The user message before both texts. Absent: the same one as for all concepts."""


class ConceptDetail(ConceptCard, frozen=True, kw_only=True):
    """A steering concept with its report."""

    report: ConceptReport | None
    """How well the concept works. Only in the state `ready`."""
    error: str | None
    """Why the training failed. Only in the state `failed`."""
    examples: list[ConceptExample] | msgspec.UnsetType = msgspec.UNSET
    """The contrastive pairs. Only if the request asks for them with `examples=true`."""


class ConceptProblem(msgspec.Struct, frozen=True):
    """A concept file that cannot be used."""

    file: str
    """The file's name, without its directory."""
    reason: str
    """What is wrong with it."""


class ConceptList(msgspec.Struct, frozen=True, kw_only=True):
    """All steering concepts, including those in creation."""

    object: Literal["list"] = "list"
    """Always `list`."""
    data: list[ConceptCard]
    """The concepts, without their reports."""
    problems: list[ConceptProblem]
    """The concept files that cannot be used."""

"""Requests and answers of the steering concepts' routes.

A ConceptRequest is validated with the operator's LimitSettings as the context.
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

from app.schemas.base import RequestModel, broken, limits_of
from inference.interface.protocol import ConceptReport

ID_PREFIX = "_worker/"
NAME_PATTERN = "[a-zA-Z0-9-_]{1,64}"
"""Matches a whole name: use it with fullmatch."""
ID_PATTERN = f"^({ID_PREFIX})?{NAME_PATTERN}$"


def full_id(given: str) -> str:
    """The id of a concept that is named with or without `_worker/`."""
    return ID_PREFIX + given.removeprefix(ID_PREFIX)


def _check_text(text: str, info: ValidationInfo) -> str:
    limit = limits_of(info).max_example_characters
    if len(text) > limit:
        raise broken(f"must have at most {limit} characters", text)
    if not text.strip():
        raise broken("must not be blank", text)
    return text


# What str.strip() leaves; other languages' \s lacks some of it.
_NOT_BLANK = r"[^\s\x1c-\x1f\x85]"

ExampleText = Annotated[str, AfterValidator(_check_text), Field(json_schema_extra={"pattern": _NOT_BLANK})]
ConceptId = Annotated[str, StringConstraints(pattern=ID_PATTERN)]


class PairedExample(RequestModel):
    positive: ExampleText
    """Shows the concept."""
    negative: ExampleText
    """The same without the concept, or with its opposite."""

    @model_validator(mode="after")
    def _check_difference(self) -> "PairedExample":
        if self.positive == self.negative:
            raise broken("must differ from positive", self.negative, "negative")
        return self


class ConceptRequest(RequestModel):
    """The body of POST /steering_concepts. Fields that are not listed are ignored."""

    examples: Annotated[list[PairedExample], Field(min_length=1), FailFast()]
    name: ConceptId | None = None
    """With or without `_worker/`. Without a name, the concept's id is made from its examples."""
    description: Annotated[str, StringConstraints(max_length=1000)] = ""
    model: str | None = None

    @field_validator("examples", mode="before")
    @classmethod
    def _check_count(cls, examples: Any, info: ValidationInfo) -> Any:
        """Before the examples themselves: there may be very many."""
        limit = limits_of(info).max_examples
        if isinstance(examples, list) and not 1 <= len(examples) <= limit:
            raise broken(f"must have 1 to {limit} items", len(examples))
        return examples


class ConceptState(StrEnum):
    UNTRAINED = "untrained"
    TRAINING = "training"
    MEASURING = "measuring"
    READY = "ready"
    FAILED = "failed"


class ConceptCard(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["steering_concept"] = "steering_concept"
    created: int
    """Seconds since 1970."""
    description: str
    num_examples: int
    shipped: bool
    """It came with the server, and cannot be deleted."""
    state: ConceptState
    """On the served model. It can be used from `measuring` on; a request that uses it earlier waits."""
    progress: float
    """Of the training, 0 to 1."""


class ConceptDetail(ConceptCard, frozen=True, kw_only=True):
    report: ConceptReport | None
    """Set when it is ready."""
    error: str | None
    """Why it failed."""


class ConceptProblem(msgspec.Struct, frozen=True):
    """A file that holds no concept which can be used."""

    file: str
    """Its name, without the directory."""
    reason: str


class ConceptList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ConceptCard]
    problems: list[ConceptProblem]
    """Files of concepts that cannot be used."""

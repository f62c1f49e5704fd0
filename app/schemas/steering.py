"""The steering fields of a chat request: their types and ranges. Knows no concept and no model."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from app.schemas.base import RequestModel, allow_null, rule_error
from app.schemas.concepts import ID_PATTERN, ID_PREFIX, ConceptId, full_id

MAX_CONCEPTS = 16
MAX_STRENGTH = 2

_STRENGTH_RULE = f"must be a number from -{MAX_STRENGTH} to {MAX_STRENGTH}"


def _read_ids(given: Any) -> Any:
    """Returns the full ids, which begin with `_worker/`. Keeps the order and removes duplicates."""
    if not isinstance(given, list):
        raise rule_error("must be an array of strings", given)
    for position, concept in enumerate(given):
        _check_id(concept, position)
    distinct = tuple(dict.fromkeys(map(full_id, given)))
    if len(distinct) > MAX_CONCEPTS:
        raise rule_error(f"must name at most {MAX_CONCEPTS} concepts", given)
    return distinct


def _read_strength(given: Any) -> Any:
    """Returns the number, or maps full ids to numbers."""
    if not isinstance(given, dict):
        return _strength(given, f"{_STRENGTH_RULE}, or an object that maps concept ids to such numbers")
    strengths: dict[str, float] = {}
    for key, value in given.items():
        _check_id(key, key)
        strength = _strength(value, _STRENGTH_RULE, key)
        if strengths.setdefault(full_id(key), strength) != strength:
            raise rule_error(f"must be the same number with and without {ID_PREFIX}", value, key)
    return strengths


def _strength(value: Any, rule: str, *at: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -MAX_STRENGTH <= value <= MAX_STRENGTH:  # the second is also true for nan
        raise rule_error(rule, value, *at)
    return float(value)


def _check_id(given: Any, at: str | int) -> None:
    if not isinstance(given, str) or not re.fullmatch(ID_PATTERN, given):
        raise rule_error(f"must match {ID_PATTERN}", given, at)


_Strength = Annotated[float, Field(ge=-MAX_STRENGTH, le=MAX_STRENGTH)]
_StrengthOfEach = Annotated[
    dict[ConceptId, _Strength], Field(json_schema_extra={"additionalProperties": False})
]

DistinctIds = Annotated[tuple[str, ...], BeforeValidator(_read_ids, json_schema_input_type=list[ConceptId])]
Strength = Annotated[
    float | dict[str, float],
    BeforeValidator(_read_strength, json_schema_input_type=_Strength | _StrengthOfEach),
]
Scope = Literal["all", "prompt", "answer"]
Mode = Literal["add", "ablate", "clamp"]


def _describe_condition(schema: dict[str, Any]) -> None:
    """Says that one of the two bounds must be a number."""
    allow_null(schema)
    descriptions = {name: field["description"] for name, field in schema["properties"].items()}
    schema["anyOf"] = [
        {"required": [bound], "properties": {bound: {"type": "number", "description": descriptions[bound]}}}
        for bound in ("above", "below")
    ]


class SteeringWhen(RequestModel):
    """A condition on the prompt. It needs `above` or `below`; with both, both must hold."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_describe_condition)

    concept: Annotated[ConceptId, AfterValidator(full_id)]
    """The id of the concept that is read, with or without `_worker/`. It may be any concept."""
    above: float | None = None
    """The mean reading of the prompt must be greater than this number."""
    below: float | None = None
    """The mean reading of the prompt must be less than this number."""

    @model_validator(mode="after")
    def _check_range(self) -> "SteeringWhen":
        if self.above is None and self.below is None:
            raise rule_error("must have above or below", {"concept": self.concept})
        if self.above is not None and self.below is not None and self.above >= self.below:
            raise rule_error("must be less than below", self.above, "above")
        return self


def check_steering(
    concepts: Sequence[str], strength: float | Mapping[str, float], scope: Scope, when: SteeringWhen | None
) -> None:
    """The rules between the steering fields of a request."""
    if isinstance(strength, Mapping):
        for concept in strength:
            if concept not in concepts:
                raise rule_error("must be one of steering_concepts", concept, "steering_strength", concept)
    if when is not None and scope == "prompt":
        rule = "must be all or answer, because steering_when steers only answers"
        raise rule_error(rule, scope, "steering_scope")

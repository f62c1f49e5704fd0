"""Describes concepts for the API: what they are, and their state on each model."""

from collections.abc import Sequence
from typing import Any

import msgspec

from app.concepts.concept import Concept
from app.concepts.steerable import SteerableModel
from app.schemas.concepts import ConceptCard, ConceptDetail, ConceptExample, ConceptOnModel, ConceptState

_UNTRAINED = ConceptOnModel(ConceptState.UNTRAINED, 0.0)
"""On no model, as long as none is loaded."""


def card_of(concept: Concept, models: Sequence[SteerableModel]) -> ConceptCard:
    """The concept without reports. `models`: those that the request is about, the first one first."""
    states = {model.name: model.state_of(concept) for model in models}
    first = next(iter(states.values()), _UNTRAINED)
    return ConceptCard(**_facts(concept, states), state=first.state, progress=first.progress)


def detail_of(
    concept: Concept, models: Sequence[SteerableModel], has_examples: bool = False
) -> ConceptDetail:
    """The concept with its reports, and perhaps with its examples."""
    states = {model.name: model.describe(concept) for model in models}
    first = next(iter(states.values()), _UNTRAINED)
    pairs = [ConceptExample(each.positive, each.negative, each.prompt) for each in concept.examples]
    return ConceptDetail(
        **_facts(concept, states),
        state=first.state,
        progress=first.progress,
        report=first.report,
        error=first.error,
        examples=pairs if has_examples else msgspec.UNSET,
    )


def _facts(concept: Concept, states: dict[str, ConceptOnModel]) -> dict[str, Any]:
    return {
        "id": concept.id,
        "created": concept.created,
        "description": concept.description,
        "num_examples": len(concept.examples),
        "imported": concept.vectors is not None,
        "shipped": concept.shipped,
        "models": states if len(states) > 1 else msgspec.UNSET,
    }

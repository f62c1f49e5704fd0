"""A steering concept: its id, its examples and their digest. Knows no files, no model and no tokens."""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property

import msgspec

from app.schemas.concepts import ID_PREFIX, NAME_PATTERN

_NAME = re.compile(NAME_PATTERN)
_DIGEST = re.compile("[0-9a-f]{64}")


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A contrastive pair: a text with the concept, and a text without it or with its opposite."""

    positive: str
    negative: str


@dataclass(frozen=True)
class Concept:
    id: str
    """`_worker/` followed by the concept's name."""
    description: str
    examples: tuple[Example, ...]
    created: int
    """Seconds since 1970."""
    shipped: bool = False
    """The concept comes with the configuration and cannot be deleted."""

    @cached_property
    def digest(self) -> str:
        return digest_of(self.examples)


def digest_of(examples: tuple[Example, ...]) -> str:
    """SHA-256, in hex, of a JSON array of [positive, negative]: UTF-8, no spaces, no unnecessary escapes.

    Raises UnicodeEncodeError if a text holds a lone surrogate.
    """
    pairs = [[example.positive, example.negative] for example in examples]
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def is_id(text: str) -> bool:
    return text.startswith(ID_PREFIX) and _NAME.fullmatch(text.removeprefix(ID_PREFIX)) is not None


def names_other_examples(concept: Concept) -> bool:
    """Whether the id has the form of a digest but is not the digest of the concept's examples."""
    name = concept.id.removeprefix(ID_PREFIX)
    return name != concept.digest and _DIGEST.fullmatch(name) is not None

"""A steering concept: its id, its examples or vectors, and their digest. Knows no files and no tokens."""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property

import msgspec

from app.concepts.vectors.imported import ImportedVectors
from app.schemas.concepts import ID_PREFIX, NAME_PATTERN

_NAME = re.compile(NAME_PATTERN)
_DIGEST = re.compile("[0-9a-f]{64}")


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A contrastive pair: a text with the concept, and a text without it or with its opposite."""

    positive: str
    negative: str
    prompt: str | None = None
    """The user message before both texts. None: the same one as for all concepts."""


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
    vectors: ImportedVectors | None = None
    """Vectors that a caller has imported. None: the vectors are made from the examples.

    With imported vectors there may be no examples. If there are some, they only serve to measure the vectors.
    """

    @cached_property
    def digest(self) -> str:
        """Of what the concept is made from: its vectors or its examples."""
        return self.vectors.record.digest if self.vectors else digest_of(self.examples)


def digest_of(examples: tuple[Example, ...]) -> str:
    """SHA-256, in hex, of a JSON array of [positive, negative] or [positive, negative, prompt].

    The JSON is in UTF-8, without spaces or unnecessary escapes. Raises UnicodeEncodeError if a text holds a
    lone surrogate.
    """
    texts = [[example.positive, example.negative, example.prompt] for example in examples]
    entries = [[text for text in entry if text is not None] for entry in texts]
    return hashlib.sha256(json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def is_id(text: str) -> bool:
    return text.startswith(ID_PREFIX) and _NAME.fullmatch(text.removeprefix(ID_PREFIX)) is not None


def names_other_content(concept: Concept) -> bool:
    """Whether the id has the form of a digest but is not the concept's digest."""
    name = concept.id.removeprefix(ID_PREFIX)
    return name != concept.digest and _DIGEST.fullmatch(name) is not None

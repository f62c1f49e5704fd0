"""Which of a concept's examples count as evidence: drops duplicates, and groups examples that are alike.

Knows no model and no tokens. The result does not depend on the order of the examples.
"""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from app.concepts.concept import Example

_ALIKE = 0.6
"""Two texts are alike from this Jaccard index of their character trigrams on. Sentences that differ in one
name or word have more, independent sentences of one kind have less than 0.3."""
_BUCKETS = 4096
_TRIGRAM = 3


@dataclass(frozen=True)
class Arrangement:
    """The distinct examples in an order of their own."""

    order: list[int]
    """The indices of the distinct examples, without exact duplicates."""
    groups: list[int]
    """The number of the group of each of them, from 0."""


def arrange(examples: Sequence[Example]) -> Arrangement:
    """Two examples are in one group if they share a text, or if their texts are alike on both sides.

    Equal texts after different prompts are not shared. What all texts of a side begin with, such as a
    persona, does not make them alike. Takes about three seconds for 1000 examples of 4000 characters.
    """
    first = {_digest(example): number for number, example in reversed(list(enumerate(examples)))}
    order = [first[digest] for digest in sorted(first)]
    distinct = [examples[number] for number in order]
    linked = _share_a_text(distinct)
    linked |= (
        _alike([example.positive for example in distinct])
        & _alike([example.negative for example in distinct])
        & _share_prompts(distinct)
    )
    return Arrangement(order, _components(linked))


def _digest(example: Example) -> bytes:
    parts = [hashlib.sha256((part or "").encode()).digest() for part in _parts(example)]
    return hashlib.sha256(b"".join(parts)).digest()


def _parts(example: Example) -> tuple[str | None, ...]:
    return example.positive, example.negative, example.prompt


def _side(example: Example, text: str) -> str:
    return f"{example.prompt}\n{text}" if example.prompt else text


def _share_a_text(examples: list[Example]) -> NDArray[np.bool_]:
    """[N, N]: whether two examples have a text in common, on either side."""
    numbers: dict[str, int] = {}
    sides = np.array(
        [
            numbers.setdefault(_side(example, text), len(numbers))
            for example in examples
            for text in (example.positive, example.negative)
        ]
    ).reshape(-1, 2)
    same: NDArray[np.bool_] = (sides[:, None, :, None] == sides[None, :, None, :]).any((2, 3))
    return same


def _share_prompts(examples: list[Example]) -> NDArray[np.bool_]:
    """[N, N]: whether two examples have the same prompt. Equal answers to other questions are evidence."""
    numbers: dict[str | None, int] = {}
    prompts = np.array([numbers.setdefault(example.prompt, len(numbers)) for example in examples])
    same: NDArray[np.bool_] = prompts[:, None] == prompts
    return same


def _alike(texts: list[str]) -> NDArray[np.bool_]:
    """[N, N]: whether the Jaccard index of two texts' trigrams is at least _ALIKE."""
    sets = np.zeros((len(texts), _BUCKETS), np.float32)
    beginning = _common_beginning(texts) if len(texts) > 2 else 0
    for row, text in zip(sets, texts, strict=True):
        row[_trigram_buckets(text[beginning:])] = 1
    shared = sets @ sets.T
    sizes = sets.sum(1)
    result: NDArray[np.bool_] = shared >= _ALIKE * (sizes[:, None] + sizes - shared)
    return result


def _common_beginning(texts: list[str]) -> int:
    """The number of characters that all texts begin with."""
    return sum(
        1 for _ in takewhile(lambda chars: chars[0] == chars[1], zip(min(texts), max(texts), strict=False))
    )


def _trigram_buckets(text: str) -> list[int]:
    padded = f" {' '.join(text.casefold().split())} "
    count = max(1, len(padded) - _TRIGRAM + 1)
    return [zlib.crc32(padded[start : start + _TRIGRAM].encode()) % _BUCKETS for start in range(count)]


def _components(linked: NDArray[np.bool_]) -> list[int]:
    """The connected component of each node, numbered by the first node."""
    groups = [-1] * len(linked)
    count = 0
    for start in range(len(linked)):
        if groups[start] >= 0:
            continue
        pending = [start]
        groups[start] = count
        while pending:
            for other in np.flatnonzero(linked[pending.pop()]).tolist():
                if groups[other] < 0:
                    groups[other] = count
                    pending.append(other)
        count += 1
    return groups

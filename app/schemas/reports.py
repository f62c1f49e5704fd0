"""The report of a concept over HTTP. It is the worker's report, with texts instead of tokens."""

import msgspec

from inference.interface.protocol import AnswerEffect, Effect


class SampleAnswer(msgspec.Struct, frozen=True):
    """An answer that was generated when the concept was measured."""

    strength: float
    """-1, 0 or 1."""
    question: str
    """The user message."""
    text: str
    """The answer. It may be cut off, because the server generates only short ones."""


class ConceptReport(msgspec.Struct, frozen=True, kw_only=True):
    """How well a concept works on the served model, measured on held-out contrastive pairs."""

    works: bool | None
    """Whether the concept has the effect that its examples show. null: there are too few examples to tell, or
    nothing was measured."""
    summary: str
    """The verdict in words."""
    warnings: list[str]
    """Problems of the examples and of the effect, in words."""
    num_examples: int
    """Number of all pairs."""
    num_distinct: int
    """Number of pairs without exact duplicates."""
    num_groups: int
    """Number of groups of pairs. Pairs that share a text or differ only in a slot are in one group."""
    num_held_out: int
    """Number of pairs that were measured, each with a direction computed without its group."""
    agreement: float | None
    """Mean cosine similarity between the differences of two pairs, -1 to 1. null: there is only one pair."""
    effects: list[Effect]
    """The effect on held-out pairs, ordered by strength, from -1 to 1. Empty if it was not measured."""
    spearman: float | None
    """Rank correlation of strength and shift."""
    specificity: float | None
    """Shift from strength -1 to 1, divided by the shift that random directions of the same norm cause."""
    specificity_error: float | None
    """Standard error of `specificity`."""
    answers: list[AnswerEffect]
    """What generated answers look like at the strengths -1, 0 and 1. Empty if none were generated."""
    samples: list[SampleAnswer]
    """Some of these answers: the same questions at each strength."""
    blocks: list[int]
    """Indices of the decoder blocks whose output is steered, from 0."""
    reading_block: int
    """Index of the decoder block whose output is read."""
    dose: float
    """Norm of what strength 1 adds to a block's output, divided by that output's mean norm. With several
    blocks, the largest of these numbers."""
    down_dose: float
    """The same for strength -1."""
    max_strength: float
    """The largest strength that is used. A larger one counts as this one."""
    max_down_strength: float
    """The same for negative strengths, as a positive number."""

"""The report of a concept over HTTP. It is the worker's report, with texts instead of tokens."""

import msgspec

from inference.interface.concepts import BaseReport


class SampleAnswer(msgspec.Struct, frozen=True):
    """An answer that was generated when the concept was measured."""

    strength: float
    """-1, 0 or 1."""
    question: str
    """The user message."""
    text: str
    """The answer. It may be cut off, because the server generates only short ones."""


class ConceptReport(BaseReport[SampleAnswer], frozen=True, kw_only=True):
    """How well a concept works on the served model, measured on held-out contrastive pairs."""

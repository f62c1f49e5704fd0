"""Tiller from Python: a steered chat model in this process, without a server.

from tiller import LLM

with LLM() as llm:
    print(llm.chat("Tell me about the hotel.", max_tokens=40, temperature=0, steering={"formality": -1}))
"""

from app.concepts.concept import Example
from tiller import _openmp  # noqa: F401 - before torch
from tiller.concept import Concept
from tiller.errors import EngineError, InvalidRequestError, LoadError, TillerError, UnknownConceptError
from tiller.generation import Answer
from tiller.llm import LLM
from tiller.options import Condition, Options, Request

__all__ = [
    "LLM",
    "Answer",
    "Concept",
    "Condition",
    "EngineError",
    "Example",
    "InvalidRequestError",
    "LoadError",
    "Options",
    "Request",
    "TillerError",
    "UnknownConceptError",
]

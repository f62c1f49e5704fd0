"""Scores that show a concept in an answer. Strength 1 should raise them."""

import re
from collections.abc import Callable

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

_FRENCH = frozenset(
    re.findall(
        r"\w+",
        "le la les un une des du de et est à au aux en dans pour que qui ce cette ces il elle nous vous "
        "ils sont ne pas plus avec sur par je tu on se sa son ses mais ou où si comme être avoir fait très",
    )
)
_HEDGES = frozenset(
    re.findall(r"\w+", "may might maybe perhaps could possibly probably seems seem somewhat likely unsure")
)

_vader = SentimentIntensityAnalyzer()


def compound(answer: str) -> float:
    """VADER's sentiment score, -1 to 1."""
    return float(_vader.polarity_scores(answer)["compound"])


def share_of(words: frozenset[str], answer: str) -> float:
    found = _words(answer)
    return sum(word in words for word in found) / max(1, len(found))


def letters_per_word(answer: str) -> float:
    found = _words(answer)
    return sum(map(len, found)) / max(1, len(found))


def _words(answer: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", answer.lower())


SCORERS: dict[str, tuple[str, Callable[[str], float]]] = {
    "sentiment": ("VADER compound", compound),
    "french": ("share of common French words", lambda answer: share_of(_FRENCH, answer)),
    "formality": ("letters per word", letters_per_word),
    "child-friendly": ("letters per word, negated", lambda answer: -letters_per_word(answer)),
    "confidence": ("share of hedging words, negated", lambda answer: -share_of(_HEDGES, answer)),
}

"""Scores that show a concept in an answer. Strength 1 should raise them.

They count words and letters, so that anybody can check them. They do not know the model or the examples. An
empty answer scores 0. In word counts a form counts at most three times, so that loops do not score.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

_WORDS = Path(__file__).parent / "words"
_MAX_COUNT = 3
_LONG = range(9, 25)
_MAX_WORD = 20
_ELISION = re.compile(r"\b([cdjlmnst]|qu|jusqu|lorsqu|puisqu)'(?!mon\b|all\b)(?=\w{2})")
_CONTRACTION = re.compile(r"\w+(?:n't|'(?:m|re|ve|ll|d))")
_DROPPED_G = re.compile(r"\w{2,}in'(?!\w)|(?<!\w)o'(?= )")
_SENTENCE = re.compile(r"""(.+?)(?:([.!?…]+)["'”’»)\]*_]*(?=\s|$)|$)""", re.MULTILINE)
_NO_PLURALS = frozenset(["cubes", "does", "fines", "rates", "stages", "wages"])
_ETH = re.compile(r"\w{2,}(?<!ti)eth|\w{2,}'st")
_NO_ETH = re.compile("teeth|shibboleth|elizabeth|gareth|gwyneth|kenneth|lambeth|macbeth|nazareth")
_NO_EST = re.compile("cleanest|closest|digest|leanest|meanest")
_VOWELS = "aeiouyàâäáéèêëíîïóôöúùûü"
_AFTER_BE = frozenset(["be", "been", "being", "get", "gets", "getting"])
_SUBJECTS = frozenset(["i", "you", "we", "they"])
_ADVERBS = frozenset(["always", "also", "often", "never", "just", "still", "really", "usually", "sometimes"])


def compound(answer: str) -> float:
    """VADER's sentiment score, -1 to 1."""
    return float(_vader().polarity_scores(answer)["compound"])


def formality(answer: str) -> float:
    """(formal - informal) / (words and exclamation marks), -1 to 1."""
    words = _words(answer)
    listed, balance = _balance(words, "formal", "informal")
    others = [word for word in words if word not in listed]
    long = (word for word in others if len(word) in _LONG and word not in _phrases("everyday"))
    balance += _counts(long).total() - _counts(filter(_CONTRACTION.fullmatch, others)).total()
    exclamations = min(_MAX_COUNT, answer.count("!"))
    return (balance - exclamations) / max(1, len(words) + exclamations)


def reading_ease(answer: str) -> float:
    """Flesch's reading ease (1948), limited to -100 to 120: about 0 for a scholar, 100 for a child."""
    words = _words(answer)
    if not words:
        return 0.0
    sentences = sum(bool(_words(part)) for part in re.split(r"[.!?…]+(?=\s|$)|\n+", answer))
    syllables = sum(map(_syllables, words))
    ease = 206.835 - 1.015 * len(words) / max(1, sentences) - 84.6 * syllables / len(words)
    return min(120.0, max(-100.0, ease))


def confidence(answer: str) -> float:
    """(assertive - hedging words and phrases) / words, -1 to 1."""
    words = _words(answer)
    _, balance = _balance(words, "assertive", "hedging")
    return balance / max(1, len(words))


def french(answer: str) -> float:
    """Share of common French words that are not English. "l'eau" is read as "le eau"."""
    return _share(_words(_ELISION.sub(r"\1e ", _lower(answer))), "french")


def german(answer: str) -> float:
    """Share of common German words that are not English."""
    return _share(_words(answer), "german")


def capitals(answer: str) -> float:
    """Share of capitals among the letters that can be one. Digits and signs do not count."""
    letters = [letter for letter in answer if letter.isupper() or letter.islower()]
    return sum(map(str.isupper, letters)) / max(1, len(letters))


def past_tense(answer: str) -> float:
    """(past - present verb forms) / (both), -1 to 1."""
    words = _words(answer)
    tenses = [(word, _tense(words[max(0, i - 2) : i], word)) for i, word in enumerate(words)]
    past = _counts(word for word, tense in tenses if tense > 0).total()
    present = _counts(word for word, tense in tenses if tense < 0).total()
    return (past - present) / max(1, past + present)


def food(answer: str) -> float:
    """Share of words for foods, dishes, tastes and cooking."""
    return _share([_singular(word, _phrases("food")) for word in _words(answer)], "food")


def pirate(answer: str) -> float:
    """Share of words and phrases of pirates, and of words such as "sailin'" and "o'"."""
    words = _words(answer)
    dialect = _counts(_DROPPED_G.findall(_lower(answer))).total()
    return min(1.0, _share(words, "pirate") + dialect / max(1, len(words)))


def spanish(answer: str) -> float:
    """Share of common Spanish words that are not English."""
    return _share(_words(answer), "spanish")


def animals(answer: str) -> float:
    """Share of words for animals, their bodies, homes, sounds and movements."""
    words = [word.removesuffix("'s") for word in _words(answer)]
    known = _phrases("animals")
    return _share([word if word in _NO_PLURALS else _singular(word, known) for word in words], "animals")


def questions(answer: str) -> float:
    """Share of the sentences that end in a question mark. A last sentence that is cut off is one without.

    The end of a line ends a sentence too. The same question counts at most three times.
    """
    sentences = [part for part in _SENTENCE.findall(_lower(answer)) if _words(part[0])]
    return _counts(text.strip() for text, end in sentences if "?" in end).total() / max(1, len(sentences))


def shakespeare(answer: str) -> float:
    """Share of Early Modern English words and phrases, and of verb forms such as "speakest" and "goeth"."""
    words = _words(answer)
    unlisted = (word for word in words if word not in _phrases("shakespeare"))
    verbs = _counts(filter(_early_modern, unlisted)).total()
    return min(1.0, _share(words, "shakespeare") + verbs / max(1, len(words)))


def word_repetition(answer: str) -> float:
    """Share of the trigrams of words that repeat an earlier one; 0 for fewer than two trigrams.

    Each character of a word of more than 20 counts as a word, so that "hahaha..." repeats. Without words,
    characters count instead.
    """
    words = re.findall(r"\w+(?:'\w+)*", _lower(answer)) or list(answer)
    items = [item for word in words for item in ([word] if len(word) <= _MAX_WORD else word)]
    trigrams = list(zip(items, items[1:], items[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if len(trigrams) >= 2 else 0.0


def _lower(text: str) -> str:
    return text.lower().replace("’", "'")


def _words(text: str) -> list[str]:
    """In lower case, with the apostrophes inside of words. No digits."""
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", _lower(text))


def _counts(words: Iterable[str]) -> Counter[str]:
    return Counter({word: min(_MAX_COUNT, count) for word, count in Counter(words).items()})


def _share(words: list[str], name: str) -> float:
    found = _counts(_pattern(name).findall(" ".join(words)))
    return sum(count * (phrase.count(" ") + 1) for phrase, count in found.items()) / max(1, len(words))


def _balance(words: list[str], more: str, less: str) -> tuple[frozenset[str], int]:
    """The words that two lists contain, and their hits in the first list minus those in the second.

    Of overlapping phrases the longer counts: "not sure" is not "sure".
    """
    found = _counts(_pattern(more, less).findall(" ".join(words)))
    balance = sum(count if phrase in _phrases(more) else -count for phrase, count in found.items())
    return frozenset(word for phrase in found for word in phrase.split()), balance


@cache
def _pattern(*names: str) -> re.Pattern[str]:
    phrases = sorted((phrase for name in names for phrase in _phrases(name)), key=len, reverse=True)
    return re.compile(rf"(?<![\w'])(?:{'|'.join(map(re.escape, phrases))})(?![\w'])")


@cache
def _phrases(name: str) -> frozenset[str]:
    lines = (_WORDS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    entries = [entry for line in lines if not line.startswith("#") for entry in line.split()]
    return frozenset(entry.replace("_", " ") for entry in entries)


def _singular(word: str, known: frozenset[str]) -> str:
    forms = (word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y")
    return next((form for form in forms if form in known), word)


def _early_modern(word: str) -> bool:
    """Verb forms: "goeth", "know'st" and, of the verbs in the list, "lovest". Not "teeth" or "honest"."""
    if _NO_ETH.fullmatch(word) or _NO_EST.fullmatch(word):
        return False
    if _ETH.fullmatch(word):
        return True
    stem = word.removesuffix("est")
    forms = (stem, stem + "e", re.sub(r"i$", "y", stem), re.sub(r"([^aeiou])\1$", r"\1", stem))
    return word.endswith("est") and not _verb_forms()[2].isdisjoint(forms)


def _syllables(word: str) -> int:
    """Groups of vowels, without a silent final e ("make", "makes", "baked")."""
    groups = len(re.findall(f"[{_VOWELS}]+", word))
    silent = re.search(rf"[^{_VOWELS}l]es?$|[{_VOWELS}]les?$|[^{_VOWELS}td]ed$", word)
    if silent and not re.search(r"(?:[cgsxz]|[cs]h)es$", word):
        groups -= 1
    return max(1, groups)


def _tense(before: list[str], word: str) -> int:
    """1: a past form; -1: a present form; 0: neither, or a participle, adjective or noun.

    `before`: up to two words in front of it.
    """
    if word in _phrases("past") or word in _phrases("present"):
        return 1 if word in _phrases("past") else -1
    if before and before[-1] in _phrases("determiners"):
        return 0
    past, third, base = _verb_forms()
    if word in past or (word.endswith("ed") and not _no_past(word)):
        return 0 if (_AFTER_BE | _phrases("present")).intersection(before) else 1
    subject = before[:-1] if before and before[-1] in _ADVERBS else before[-1:]
    return -1 if word in third or (word in base and _SUBJECTS.intersection(subject)) else 0


def _no_past(word: str) -> bool:
    return len(word) < 4 or word.endswith("eed") or word.startswith("un") or word in _phrases("adjectives")


@cache
def _verb_forms() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Irregular past forms, third persons, base forms."""
    verbs = [entry.partition("/") for entry in _phrases("verbs")]
    base = frozenset(verb for verb, _, _ in verbs)
    return frozenset(past for _, _, past in verbs if past), frozenset(map(_third, base)), base


def _third(verb: str) -> str:
    if re.search(r"(?:s|x|z|ch|sh|o)$", verb):
        return verb + "es"
    return verb[:-1] + "ies" if re.search(r"[^aeiou]y$", verb) else verb + "s"


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


SCORERS: dict[str, tuple[str, Callable[[str], float]]] = {
    "sentiment": ("VADER compound", compound),
    "formality": ("formal minus informal words, share", formality),
    "child-friendly": ("Flesch reading ease", reading_ease),
    "confidence": ("assertive minus hedging words, share", confidence),
    "french": ("share of common French words", french),
    "german": ("share of common German words", german),
    "uppercase": ("share of capital letters", capitals),
    "past-tense": ("past minus present verb forms, share of both", past_tense),
    "food": ("share of words about food", food),
    "pirate": ("share of pirates' words", pirate),
    "spanish": ("share of common Spanish words", spanish),
    "animals": ("share of words about animals", animals),
    "questions": ("share of sentences that ask", questions),
    "shakespeare": ("share of Early Modern English words", shakespeare),
}

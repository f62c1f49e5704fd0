"""Generated answers to neutral questions, and what steering does to them.

The answers are read back without steering, so that the reading shows the text and not the steering itself.
"""

import math
from collections import Counter
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inference.scheduling.arrays import Array64
from inference.scheduling.probe import Answer, Probe, Work
from inference.scheduling.steering import BlockVectors, Reader
from inference.steering.directions import Direction
from inference.steering.measurements import adding

_MAX_TOKENS = 40
MOVED = 0.5
"""An answer has moved if its reading changed by this share of the distance between the examples."""
MIN_MOVED = 0.35
"""Share of the answers that strength 1 must move: about half, with room for chance among twenty."""
_LOOP = 0.5
"""An answer loops if this share of its trigrams repeats."""
_MAX_REPETITION = 0.17
"""Rise of the mean share of repeated trigrams."""
_MAX_LOOPS = 0.16
"""Rise of the share of answers that loop: three of twenty may."""
_MAX_WORD_TOKENS = 10
"""Each token of a longer word counts as a word, so that "hahaha..." is a loop."""
_MAX_PERPLEXITY_RATIO = 3.3
"""Of answers with and without steering, both under the model without steering."""


@dataclass(frozen=True)
class Answers:
    """The answers to all questions at one strength. Each array has one entry for each question."""

    questions: list[int]
    """The number of each question, as in TrainConcept.questions."""
    token_ids: list[list[int]]
    readings: Array64
    """Mean reading over the answer's tokens: 0 like negative, 1 like positive examples. 0 if it is empty."""
    logprobs: Array64
    """Mean log probability of the answer's tokens without steering, in nats."""
    repetitions: Array64
    """Share of trigrams of words that repeat an earlier one. 1 for an empty answer, which says nothing."""

    @cached_property
    def says_something(self) -> NDArray[np.bool_]:
        """Which answers are not empty."""
        return np.array([bool(token_ids) for token_ids in self.token_ids], np.bool_)

    @property
    def logprob(self) -> float:
        """Mean over the answers that are not empty; 0 if all are."""
        logprobs = self.logprobs[self.says_something]
        return float(logprobs.mean()) if len(logprobs) else 0.0

    @property
    def perplexity(self) -> float:
        return math.exp(-self.logprob)

    @property
    def repetition(self) -> float:
        return float(self.repetitions.mean())

    @property
    def loops(self) -> float:
        """Share of the answers that loop."""
        return float((self.repetitions >= _LOOP).mean())


@dataclass(frozen=True)
class Setting:
    """How answers are steered. They are read back along the same direction."""

    direction: Direction
    strength: float
    """0: without steering."""


class AnswerSheet:
    """Asks the neutral questions. Compares the answers with those without steering."""

    def __init__(
        self,
        questions: Sequence[list[int]],
        stop_token_ids: tuple[int, ...],
        max_tokens: int,
        continuations: bytes = b"",
    ) -> None:
        """`max_tokens`: limit for a question and its answer together. `continuations`: see TrainConcept."""
        self.questions = {
            number: question for number, question in enumerate(questions) if len(question) < max_tokens
        }
        """By number: those that leave room for an answer."""
        self._stop_token_ids = stop_token_ids
        self._max_tokens = max_tokens
        self._continues = np.unpackbits(np.frombuffer(continuations, np.uint8), bitorder="little")

    def ask(
        self, direction: Direction, strengths: Sequence[float]
    ) -> Generator[Work, None, dict[float, Answers]]:
        """The answers at each strength along the direction."""
        answers = yield from self.ask_all([Setting(direction, strength) for strength in strengths])
        return dict(zip(strengths, answers, strict=True))

    def ask_all(self, settings: Sequence[Setting]) -> Generator[Work, None, list[Answers]]:
        """The answers to all questions, for each setting."""
        asked = [
            [self._answer(question, setting) for question in self.questions.values()] for setting in settings
        ]
        yield [answer for answers in asked for answer in answers]
        read = [
            [_read_back(answer, setting.direction) for answer in answers if answer.token_ids]
            for setting, answers in zip(settings, asked, strict=True)
        ]
        yield [probe for probes in read for probe in probes]
        return [self._collect(answers, probes) for answers, probes in zip(asked, read, strict=True)]

    def _answer(self, question: list[int], setting: Setting) -> Answer:
        most = min(_MAX_TOKENS, self._max_tokens - len(question))
        steering = adding(setting.direction, setting.strength) if setting.strength else None
        return Answer(question, most, self._stop_token_ids, steering)

    def _collect(self, answers: list[Answer], probes: list[Probe]) -> Answers:
        """An empty answer has the reading and the log probability 0. Neither is used."""
        rest = iter(probes)
        read = [next(rest) if answer.token_ids else None for answer in answers]
        return Answers(
            questions=list(self.questions),
            token_ids=[answer.token_ids for answer in answers],
            readings=np.array([float(np.mean(probe.readers[0].values)) if probe else 0.0 for probe in read]),
            logprobs=np.array([probe.mean_logprob if probe else 0.0 for probe in read]),
            repetitions=np.array(
                [
                    repetition(words(answer.token_ids, self._continues)) if answer.token_ids else 1.0
                    for answer in answers
                ]
            ),
        )


def changes(plain: Answers, steered: Answers, sign: float) -> Array64:
    """For each question by how much the reading changed towards `sign`. 0 if one of the answers is empty."""
    both = plain.says_something & steered.says_something
    result: Array64 = np.where(both, sign * (steered.readings - plain.readings), 0.0)
    return result


def moved(plain: Answers, steered: Answers, sign: float) -> Array64:
    """For each question whether the answer moved in the direction of `sign`: 1 or 0."""
    result: Array64 = (changes(plain, steered, sign) >= MOVED).astype(np.float64)
    return result


def has_room(plain: Answers, sign: float) -> bool:
    """Whether answers without steering are far enough from the examples of the sign to be moved."""
    readings = plain.readings[plain.says_something]
    if not len(readings):
        return False
    reading = float(readings.mean())
    return (1 - reading if sign > 0 else reading) >= MOVED


def fluency_cost(plain: Answers, steered: Answers, own_cost: float) -> float:
    """How much worse the steered answers read than those without steering, relative to the limits.

    Up to 1, they are fluent. `own_cost`: by how much texts with the concept are less likely than others, in
    nats per token. That is not counted as loss of fluency.
    """
    loss = plain.logprob - steered.logprob - max(own_cost, 0.0) if plain.says_something.any() else 0.0
    return max(
        loss / math.log(_MAX_PERPLEXITY_RATIO),
        (steered.repetition - plain.repetition) / _MAX_REPETITION,
        (steered.loops - plain.loops) / _MAX_LOOPS,
    )


def is_fluent(plain: Answers, steered: Answers, own_cost: float, part: float = 1.0) -> bool:
    """Whether `fluency_cost` is at most `part`."""
    return fluency_cost(plain, steered, own_cost) <= part


def words(token_ids: Sequence[int], continues: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    """The tokens of each word. `continues[i]`: 1 if token i goes on with the word of the token before it.

    A token beyond the end of `continues` begins a word. Each token of a very long word counts as a word.
    """
    found: list[list[int]] = []
    for token_id in token_ids:
        goes_on = token_id < len(continues) and continues[token_id]
        if found and goes_on:
            found[-1].append(token_id)
        else:
            found.append([token_id])
    return [part for word in found for part in _parts(tuple(word))]


def _parts(word: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [word] if len(word) <= _MAX_WORD_TOKENS else [(token_id,) for token_id in word]


def repetition(items: Sequence[Hashable]) -> float:
    """Share of the trigrams of items that repeat an earlier one. 0 for fewer than two trigrams."""
    trigrams = Counter(zip(items, items[1:], items[2:], strict=False))
    return 1 - len(trigrams) / trigrams.total() if trigrams else 0.0


def _read_back(answer: Answer, direction: Direction) -> Probe:
    vectors = BlockVectors((direction.reading_block,), direction.reading_unit)
    reader = Reader(vectors, *direction.reading_range, first=len(answer.prompt_token_ids))
    return Probe(answer.prompt_token_ids, answer.token_ids, readers=(reader,))

"""Compares steering by a concept with the field's other ways, by answers to prompts, at equal fluency.

All answers come from the same engine: the vectors of the other ways are imported into it, in their own scale.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from scipy.optimize import isotonic_regression

from benchmarks.steering.plain import PlainModel
from benchmarks.steering.scorers import word_repetition
from benchmarks.steering.ways import Way
from tiller import LLM, Concept
from tiller.options import ConceptName, Request

MAX_TOKENS = 40
STRENGTHS = (0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25, 1.5, 1.75, 2.0)
OURS = "Tiller"
PROMPT = "prompt"
MAX_REPETITION = 0.2
"""Rise of the mean share of repeated trigrams."""
MAX_LOOPS = 0.2
"""Rise of the share of answers that loop."""
LOOP = 0.5
"""An answer loops if this share of its trigrams repeats."""
MAX_LOSS = 1.3
"""Nats per token: fall of the log probability, without what the concept itself costs."""
_MAX_STRENGTH = 2.0

Array = NDArray[np.float64]
Score = Callable[[str], float]
PLAIN = ("", 0.0)
"""The key of the answers without steering."""


@dataclass(frozen=True)
class Answers:
    """Answers to all prompts. Each array has one entry for each prompt."""

    texts: list[str]
    scores: Array
    """By an outside scorer, higher for more of the goal."""
    logprobs: Array | None = None
    """Per token, in nats, without steering. None: not computed, because the answers repeat too much."""

    @cached_property
    def repetitions(self) -> Array:
        """Share of the trigrams of words that repeat. 1 for an empty answer, which says nothing."""
        return np.array([_repetition(text) for text in self.texts])

    @property
    def says_something(self) -> NDArray[np.bool_]:
        """Which answers are not empty."""
        return np.array([bool(text.strip()) for text in self.texts])

    @property
    def loops(self) -> float:
        """Share of the answers in which at least LOOP of the trigrams repeat."""
        return float((self.repetitions >= LOOP).mean())

    def pick(self, prompts: NDArray[np.int64]) -> "Answers":
        """The answers to these prompts, which may be named several times."""
        logprobs = None if self.logprobs is None else self.logprobs[prompts]
        return Answers([self.texts[number] for number in prompts], self.scores[prompts], logprobs)


@dataclass(frozen=True)
class Trial:
    """A way at one coefficient, compared with the answers without steering."""

    way: str
    coefficient: float
    answers: Answers
    gains: Array
    """For each prompt, by how much the score rose."""
    repetition: float
    """By how much the mean repetition rose."""
    loops: float
    """By how much the share of loops rose."""
    loss: float
    """Nats per token that the answers are less likely than those without steering. What the concept's own
    texts are less likely than their opposites is subtracted."""

    @property
    def gain(self) -> float:
        return float(self.gains.mean())

    @property
    def error(self) -> float:
        """Standard error of the gain."""
        return float(self.gains.std(ddof=1) / np.sqrt(len(self.gains)))

    @property
    def cost(self) -> float:
        """Loss of fluency: the largest of repetition, loops and loss, relative to its limit. 0 at least.

        If the loss is not known, the answers repeat too much anyway.
        """
        loss = self.loss if math.isfinite(self.loss) else 0.0
        return max(0.0, self.repetition / MAX_REPETITION, self.loops / MAX_LOOPS, loss / MAX_LOSS)


@dataclass(frozen=True)
class Comparison:
    """All trials for one goal: one sign of one concept."""

    concept: str
    sign: int
    plain: Answers
    trials: list[Trial]
    own_loss: float = 0.0
    """Nats per token that the texts of the goal are less likely than their opposites."""

    def resampled(self, random: np.random.Generator) -> "Comparison":
        """The same comparison with as many prompts, drawn from these with replacement."""
        count = len(self.plain.texts)
        prompts = random.integers(count, size=count)
        plain = self.plain.pick(prompts)
        trials = [
            _trial(trial.way, trial.coefficient, trial.answers.pick(prompts), plain, self.own_loss)
            for trial in self.trials
        ]
        return replace(self, plain=plain, trials=trials)

    @property
    def goal(self) -> str:
        return f"{self.concept} {self.sign:+d}"

    @property
    def ways(self) -> list[str]:
        return list(dict.fromkeys(trial.way for trial in self.trials))

    def of(self, way: str) -> list[Trial]:
        """By coefficient."""
        return sorted(
            (trial for trial in self.trials if trial.way == way), key=lambda trial: trial.coefficient
        )

    def costs(self, way: str) -> list[float]:
        """The cost of each trial of a way, made to rise with the coefficient.

        More steering costs more fluency. A few prompts show exceptions by chance, and the best trial would be
        one of these. Isotonic regression averages them with their neighbours.
        """
        costs = [trial.cost for trial in self.of(way)]
        fitted: list[float] = isotonic_regression(costs).x.tolist() if costs else []
        return fitted

    def cost(self, trial: Trial) -> float:
        """One of `costs`."""
        return next(
            cost for one, cost in zip(self.of(trial.way), self.costs(trial.way), strict=True) if one is trial
        )

    def is_fluent(self, trial: Trial) -> bool:
        return self.cost(trial) <= 1.0

    def best(self, way: str) -> Trial | None:
        """The fluent trial of a way with the largest gain."""
        return max(filter(self.is_fluent, self.of(way)), key=lambda trial: trial.gain, default=None)

    def gains_at(self, way: str, cost: float) -> Array:
        """The gains [number of prompts] of a way at a cost, interpolated between its best trials.

        The best trials are those with a larger mean gain than all trials of less cost. Without steering, cost
        and gains are 0. Beyond the most costly trial, its gains count.
        """
        before: tuple[float, Array] = (0.0, np.zeros(len(self.plain.scores)))
        trials = zip(self.costs(way), self.of(way), strict=True)
        for own_cost, trial in sorted(trials, key=lambda pair: (pair[0], -pair[1].gain)):
            if trial.gain <= before[1].mean():
                continue
            if own_cost > cost:
                part = (cost - before[0]) / (own_cost - before[0])
                return before[1] + part * (trial.gains - before[1])
            before = (own_cost, trial.gains)
        return before[1]


class Arena:
    """Asks the prompts in all ways."""

    def __init__(self, llm: LLM, other: LLM, model: PlainModel, prompts: Sequence[str]) -> None:
        """`llm`: knows the concepts. `other`: the same model, for the other ways."""
        self._llm = llm
        self._other = other
        self._model = model
        self._prompts = prompts

    def others(self, sign: int, instruction: str, ways: Iterable[Way], score: Score) -> "Rated":
        """What does not depend on Tiller's training: the answers without steering, of a prompt, and of the
        other ways. `score`: higher for more of the goal."""
        texts = {PLAIN: self._ask(), (PROMPT, 1.0): self._ask(instruction)}
        for way in ways:
            largest = way.coefficients[-1]
            other = self._other.add(_as_concept(way, largest / _MAX_STRENGTH))
            strengths_of = {c: sign * _MAX_STRENGTH * c / largest for c in way.coefficients}
            texts |= self._steer(way.name, self._other, other, strengths_of)
        return self._rate(texts, score)

    def compare(
        self, concept: Concept, sign: int, others: "Rated", score: Score, own_loss: float
    ) -> Comparison:
        """`own_loss`: as in Comparison."""
        plain = others[PLAIN]
        strengths = {strength: sign * strength for strength in allowed_strengths(concept, sign)}
        ours = self._rate(self._steer(OURS, self._llm, concept, strengths), score, plain)
        answers = ours | {key: one for key, one in others.items() if key != PLAIN}
        trials = [_trial(*key, one, plain, own_loss) for key, one in answers.items()]
        return Comparison(concept.name, sign, plain, trials, own_loss)

    def _ask(self, instruction: str = "") -> list[str]:
        prompts = [f"{prompt} {instruction}".strip() for prompt in self._prompts]
        return _texts(self._llm, [_request(prompt, {}) for prompt in prompts])

    def _steer(self, way: str, llm: LLM, concept: Concept, strengths: dict[float, float]) -> "Texts":
        """The answers at each strength. `strengths`: by coefficient."""
        texts = _texts(
            llm, [_request(prompt, {concept: s}) for s in strengths.values() for prompt in self._prompts]
        )
        count = len(self._prompts)
        return {
            (way, coefficient): texts[number * count : (number + 1) * count]
            for number, coefficient in enumerate(strengths)
        }

    def _rate(self, texts: "Texts", score: Score, plain: Answers | None = None) -> "Rated":
        """`plain`: the answers without steering. None: they are among the texts."""
        rated = {
            key: Answers(found, np.array([score(text) for text in found])) for key, found in texts.items()
        }
        plain = plain or rated[PLAIN]
        kept = {k: one for k, one in rated.items() if k[0] == OURS or not repeats_too_much(one, plain)}
        columns = [
            self._model.answer_logprobs(prompt, [one.texts[number] for one in kept.values()]).numpy()
            for number, prompt in enumerate(self._prompts)
        ]
        logprobs = np.stack(columns, 1)  # [len(kept), number of prompts]
        known = {
            key: replace(one, logprobs=row) for (key, one), row in zip(kept.items(), logprobs, strict=True)
        }
        return rated | known


def _request(prompt: str, steering: Mapping[ConceptName, float]) -> Request:
    return {"messages": prompt, "temperature": 0, "max_tokens": MAX_TOKENS, "steering": steering}


def _texts(llm: LLM, requests: list[Request]) -> list[str]:
    return [answer.text for answer in llm.generate_many(requests)]


Key = tuple[str, float]
"""A way and a coefficient."""
Texts = dict[Key, list[str]]
Rated = dict[Key, Answers]


def allowed_strengths(concept: Concept, sign: int) -> list[float]:
    """Those of STRENGTHS that the concept does not clip."""
    assert concept.report is not None
    largest = concept.report.max_strength if sign > 0 else concept.report.max_down_strength
    return [strength for strength in STRENGTHS if strength <= largest]


def _trial(way: str, coefficient: float, answers: Answers, plain: Answers, own_loss: float) -> Trial:
    return Trial(
        way,
        coefficient,
        answers,
        answers.scores - plain.scores,
        *_rises(answers, plain),
        loss=_mean_logprob(plain) - _mean_logprob(answers) - max(own_loss, 0.0),
    )


@cache
def _repetition(text: str) -> float:
    return word_repetition(text) if text.strip() else 1.0


def repeats_too_much(answers: Answers, plain: Answers) -> bool:
    repetition, loops = _rises(answers, plain)
    return repetition > MAX_REPETITION or loops > MAX_LOOPS


def _rises(answers: Answers, plain: Answers) -> tuple[float, float]:
    """By how much the mean repetition and the share of loops rose."""
    return float((answers.repetitions - plain.repetitions).mean()), answers.loops - plain.loops


def _mean_logprob(answers: Answers) -> float:
    """Minus infinity if it is not known."""
    if answers.logprobs is None or not answers.says_something.any():
        return -math.inf
    return float(answers.logprobs[answers.says_something].mean())


def _as_concept(way: Way, factor: float) -> Concept:
    """The way's vectors times `factor`, as a file that can be imported."""
    tensors = {f"direction.{block}": (factor * vector).numpy() for block, vector in way.vectors.items()}
    return Concept("other-way", content=save(tensors))

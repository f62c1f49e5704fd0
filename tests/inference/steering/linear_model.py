"""A linear model that computes a training's work: no engine, no torch."""

from collections.abc import Generator
from typing import TypeVar

import numpy as np

from inference.interface.concepts import TrainConcept
from inference.scheduling.probe import Answer, Derivative, Probe, Work
from inference.scheduling.steering import Steering
from tests.inference.steering.conftest import make_texts

NUM_LAYERS, HIDDEN_SIZE = 10, 64
NORMS = tuple(float(i) for i in range(1, NUM_LAYERS + 1))
PROMPT = [1, 2]
QUESTIONS = [[3, 4, i] for i in range(5, 29)]
POSITIVE, NEGATIVE, NEUTRAL = range(10, 14), range(40, 44), range(100, 200)
T = TypeVar("T")


class LinearModel:
    """A token's hidden states are its embedding. Vectors make tokens with similar embeddings more likely.

    `cost`: every token's log probability falls by this, times the square of the dose that steering adds.
    `best_block`: steering at other blocks has only half the effect. `deaf_blocks`: steering there does not
    change answers. `loops_from`: from this dose on, answers repeat one token.
    """

    def __init__(
        self,
        effect: float = 4.0,
        cost: float = 0.0,
        best_block: int | None = None,
        deaf_blocks: tuple[int, ...] = (),
        loops_from: float = np.inf,
    ) -> None:
        self.embeddings = np.random.default_rng(0).standard_normal((200, HIDDEN_SIZE))
        self._effect, self._cost = effect, cost
        self._best_block, self._loops_from = best_block, loops_from
        self._deaf_blocks = set(deaf_blocks)
        self.rounds: list[Work] = []

    def embed(self, text: list[int]) -> np.ndarray:
        return self.embeddings[text]

    def run(self, work: Generator[Work, None, T]) -> T:
        while True:
            try:
                self.rounds.append(next(work))
            except StopIteration as end:
                return end.value
            self.compute_all(self.rounds[-1])

    def compute_all(self, work: Work) -> None:
        for item in work:
            if isinstance(item, Probe):
                self.compute(item)
            elif isinstance(item, Derivative):
                self.differentiate(item)
            else:
                self.answer(item)

    def compute(self, probe: Probe) -> None:
        content = self.embed(probe.content_token_ids)
        probe.logprobs[:] = -np.linalg.norm(content, axis=1)
        if probe.captures:
            probe.clear(NUM_LAYERS, HIDDEN_SIZE)
            probe.hidden_sum += content.sum(0)
            probe.norm_sum += np.array(NORMS) * len(content)
        for reader in probe.readers:
            for position, hidden in enumerate(content, start=probe.content_start):
                reader.store(position, float(hidden @ reader.direction.vectors[0]))
        if probe.steering is not None:
            probe.logprobs += content @ self._push(probe.steering)
            probe.logprobs -= self._cost * self._dose(probe.steering) ** 2

    def answer(self, answer: Answer) -> None:
        """Random neutral tokens. Steering replaces some by the tokens that it makes most likely."""
        rng = np.random.default_rng(answer.prompt_token_ids[-1])
        tokens = rng.choice(list(NEUTRAL), answer.max_tokens)
        if answer.steering is not None and not self._deaf_blocks.issuperset(answer.steering.added.blocks):
            candidates = [*POSITIVE, *NEGATIVE]
            scores = self.embeddings[candidates] @ self._push(answer.steering)
            chosen = np.argsort(-scores)[:4]
            share = float(np.clip(3 * scores[chosen].mean(), 0, 1))
            replaced = rng.random(answer.max_tokens) < share
            tokens[replaced] = rng.choice(np.array(candidates)[chosen], replaced.sum())
            if self._dose(answer.steering) >= self._loops_from:
                tokens[:] = tokens[0]
        answer.token_ids[:] = tokens.tolist()

    def differentiate(self, derivative: Derivative) -> None:
        """The log probabilities are those of `compute`, and the gradients are theirs."""
        probes = [Probe(*text, Steering(derivative.added)) for text in derivative.texts]
        for probe in probes:
            self.compute(probe)
        derivative.logprobs = np.array([probe.mean_logprob for probe in probes])
        blocks, vectors = derivative.added.blocks, derivative.added.vectors
        norms = np.array(NORMS)[list(blocks)]
        weights = np.array([1.0 if self._best_block in (None, block) else 0.5 for block in blocks])
        pushes = (weights * self._effect / norms / HIDDEN_SIZE)[:, None]
        costs = 2 * self._cost * vectors / norms[:, None] ** 2
        means = [self.embed(content).mean(0) for _, content in derivative.texts]
        derivative.gradients = np.array([pushes * mean - costs for mean in means], np.float32)

    def _push(self, steering: Steering) -> np.ndarray:
        """[hidden_size]: how much more likely a token gets per unit of its embedding."""
        total = np.zeros(HIDDEN_SIZE)
        for block, vector in zip(steering.added.blocks, steering.added.vectors, strict=True):
            weight = 1.0 if self._best_block in (None, block) else 0.5
            total += weight * self._effect * vector / NORMS[block] / HIDDEN_SIZE
        return total

    def _dose(self, steering: Steering) -> float:
        lengths = np.linalg.norm(steering.added.vectors, axis=1)
        return float(np.sqrt(np.square(lengths / np.array(NORMS)[list(steering.added.blocks)]).sum()))


def make_command(count: int = 12, *, mixes: bool = False, **changes: object) -> TrainConcept:
    """Positive and negative texts use different tokens. `mixes`: every second pair is swapped."""
    positive, negative = make_texts(1, count, POSITIVE), make_texts(2, count, NEGATIVE)
    if mixes:
        for i in range(0, count, 2):
            positive[i], negative[i] = negative[i], positive[i]
    return TrainConcept(
        **{
            "concept": "kind",
            "prompt_token_ids": PROMPT,
            "pair_prompts": [PROMPT] * count,
            "positive": positive,
            "negative": negative,
            "neutral": make_texts(3, 5, NEUTRAL),
            "questions": QUESTIONS,
            **changes,
        }
    )

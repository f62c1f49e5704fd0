"""Refines the mean differences by gradients, so that they steer more strongly at the same fluency.

The method is bi-directional preference optimization (BiPO, Cao et al., arXiv:2406.00045). It finds one vector
for each block, which makes positive texts more likely than negative ones at strength 1, and less likely at
strength -1. With m for a pair's change of the log odds of positive over negative, in nats per token, the loss
is -log sigmoid(m) at strength 1 and -log sigmoid(-m) at strength -1. A pair that is decided adds almost
nothing to the gradient, so the vectors stay small.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np

from inference.interface.concepts import TrainConcept
from inference.scheduling.arrays import Array32, Array64
from inference.scheduling.probe import Derivative, Work
from inference.scheduling.steering import BlockVectors
from inference.steering.adam import Adam
from inference.steering.directions import Direction
from inference.steering.measurements import Examples, HeldOutDirections
from inference.steering.search import RefinedBlocks

_NUM_STEPS = 20
_PART = 4
"""Each step takes a fourth of the pairs."""
_MAX_PAIRS = 9
"""Limit for the pairs of a step."""
_BATCH_TOKENS = 256
"""Limit for the texts of a derivative, unless it is one text alone: requests wait until it is computed, and
the activations of all blocks need memory at once."""
_MAX_CONTENT = 256
"""Only so many tokens of a text count, for the same reasons."""
_MAX_PROMPT = 256
"""Pairs with a longer prompt do not count."""
_START = 0.03
"""Norm of the vector at each block that the first step changes, relative to the block's output."""
_STEP = 0.0072
"""How far the first step moves it, in the same unit. Later steps are shorter, the last one almost zero."""
_DECIDED = 50.0
"""Nats per token. A pair with more has no weight, and the exponential function would overflow."""


class RefinementError(Exception):
    """The model cannot be differentiated. The message says why."""


def refine(
    examples: Examples, blocks: RefinedBlocks
) -> Generator[Work, None, tuple[HeldOutDirections, float]]:
    """The refined directions, also those made without each fold, and the dose that the vectors have.

    Raises RefinementError.
    """
    folds = range(examples.num_folds) if examples.num_folds > 1 else ()
    texts = _Texts(examples)
    refinements = [_Refinement(examples, texts, blocks.steered, fold) for fold in (None, *folds)]
    for step in range(_NUM_STEPS):
        derivatives = [*chain.from_iterable(one.derivatives() for one in refinements)]
        yield derivatives
        if fault := next(filter(None, (one.find_fault() for one in derivatives)), None):
            raise RefinementError(fault)
        for one in refinements:
            one.update(1 - step / _NUM_STEPS)
    full, *by_fold = (one.direction(blocks.read) for one in refinements)
    return HeldOutDirections(full, by_fold or [full], examples.folds), refinements[0].dose


def estimate_tokens(command: TrainConcept, num_folds: int) -> int:
    """About how many tokens `refine` computes."""
    count = len(command.positive)
    if not count or command.vectors is not None:
        return 0
    texts = [*command.positive, *command.negative]
    tokens = sum(min(len(text), _MAX_CONTENT) for text in texts) + 2 * sum(map(len, command.pair_prompts))
    per_pair = tokens / count
    parts = [count, *[count - count // num_folds] * num_folds]
    pairs = sum(_pairs_per_step(part) for part in parts)
    return round(2 * _NUM_STEPS * pairs * per_pair)


def _pairs_per_step(num_pairs: int) -> int:
    return min(math.ceil(num_pairs / _PART), _MAX_PAIRS)


class _Texts:
    """What is used of the pairs' texts."""

    def __init__(self, examples: Examples) -> None:
        self.pairs = [
            pair
            for pair, probe in enumerate(examples.plain.positive)
            if len(probe.prompt_token_ids) <= _MAX_PROMPT
        ]
        self._sides = examples.plain.positive, examples.plain.negative
        positive, negative = (
            np.array([probe.logprobs[:_MAX_CONTENT].mean() for probe in side]) for side in self._sides
        )
        self.log_odds: Array64 = positive - negative
        """[number of pairs]: how much more likely the positive text is than the negative one, without
        steering, in nats per token."""

    def differentiate(self, pairs: list[int], added: BlockVectors) -> list[Derivative]:
        """The derivatives of the positive and the negative text of each pair in turn."""
        batches: list[list[tuple[list[int], list[int]]]] = []
        room = 0
        for probe in (side[pair] for pair in pairs for side in self._sides):
            text = probe.prompt_token_ids, probe.content_token_ids[:_MAX_CONTENT]
            room -= (size := sum(map(len, text)))
            if room < 0:
                batches.append([])
                room = _BATCH_TOKENS - size
            batches[-1].append(text)
        return [Derivative(batch, added) for batch in batches]


@dataclass(frozen=True)
class _Task:
    """What a step asks for at one strength."""

    strength: float
    derivatives: list[Derivative]

    @property
    def logprobs(self) -> Array64:
        """[2 * number of pairs]"""
        return np.concatenate([one.logprobs for one in self.derivatives])

    @property
    def gradients(self) -> Array32:
        """[2 * number of pairs, number of blocks, hidden_size]"""
        return np.concatenate([one.gradients for one in self.derivatives])


class _Refinement:
    """The vectors that are made from the pairs of all folds but one."""

    def __init__(
        self, examples: Examples, texts: _Texts, blocks: tuple[int, ...], without_fold: int | None
    ) -> None:
        self._texts = texts
        self._examples = examples
        self._without_fold = without_fold
        self._blocks = blocks
        self._norms = examples.norms[list(blocks)][:, None]
        self._vectors = _START * examples.direction(blocks, without_fold).units.astype(np.float64)
        self._adam = Adam(self._vectors.shape, _STEP / math.sqrt(examples.hidden_size))
        pairs = [pair for pair in texts.pairs if examples.folds[pair] != without_fold]
        self._order = _shuffled(pairs)
        self._num_pairs = _pairs_per_step(len(pairs))
        self._chosen: list[int] = []
        self._tasks: list[_Task] = []

    @property
    def dose(self) -> float:
        """The mean norm over the blocks."""
        return float(np.linalg.norm(self._vectors, axis=1).mean())

    def derivatives(self) -> list[Derivative]:
        """What the next step needs."""
        self._chosen = list(islice(self._order, self._num_pairs))
        vectors = (self._norms * self._vectors).astype(np.float32)
        self._tasks = [
            _Task(
                strength,
                self._texts.differentiate(self._chosen, BlockVectors(self._blocks, strength * vectors)),
            )
            for strength in (-1.0, 1.0)
            if self._chosen
        ]
        return [derivative for task in self._tasks for derivative in task.derivatives]

    def update(self, rate: float) -> None:
        """Moves the vectors by what was computed. `rate`: relative to the first step's."""
        gradient = np.zeros_like(self._vectors)
        for task in self._tasks:
            odds = task.logprobs[0::2] - task.logprobs[1::2]
            changes = task.strength * (odds - self._texts.log_odds[self._chosen])  # [number of pairs]
            slopes = task.gradients[0::2] - task.gradients[1::2]
            weights = self._examples.weights[self._chosen] / (1 + np.exp(np.minimum(changes, _DECIDED)))
            gradient -= np.tensordot(weights, slopes, 1) * self._norms
        self._vectors += rate * self._adam.step(gradient)

    def direction(self, reading_block: int) -> Direction:
        """Strength 1 adds the mean norm, on average over the blocks."""
        blocks = tuple(sorted((*self._blocks, reading_block)))
        plain = self._examples.direction(blocks, self._without_fold)
        lengths = np.linalg.norm(self._vectors, axis=1)
        units, scales = plain.units.copy(), np.ones(len(blocks))
        places = [blocks.index(block) for block in self._blocks]
        units[places] = self._vectors / lengths[:, None]
        scales[places] = lengths / self.dose
        block_lengths = scales * self._examples.norms[list(blocks)]
        place = blocks.index(reading_block)
        return replace(
            plain,
            units=units,
            lengths=tuple(block_lengths.tolist()),
            reading_block=reading_block,
            reading_range=self._examples.reading_range(reading_block, units[place]),
            up_blocks=self._blocks,
            down_blocks=self._blocks,
        )


def _shuffled(pairs: list[int]) -> Iterator[int]:
    """All pairs in a random order, and then again in another one, without an end. Always the same.

    Nothing if there are no pairs.
    """
    rng = np.random.default_rng(0)
    while pairs:
        yield from rng.permutation(pairs).tolist()

"""Refines the mean differences by gradients, so that they steer more strongly at the same fluency.

The method is bi-directional preference optimization (BiPO, Cao et al., arXiv:2406.00045). It finds one vector
for each block, which makes positive texts more likely than negative ones at strength 1, and less likely at
strength -1. With m for a pair's change of the log odds of positive over negative, in nats per token, the loss
is -log sigmoid(m) at strength 1 and -log sigmoid(-m) at strength -1. A pair that is decided adds almost
nothing to the gradient, so the vectors stay small.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import chain, islice

import numpy as np

from inference.interface.concepts import TrainConcept
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
_PAIRS_PER_BATCH = 2
"""Few, because requests wait while a batch is computed."""
_START = 0.03
"""Norm of the vector at each block that the first step changes, relative to the block's output."""
_STEP = 0.0072
"""How far the first step moves it, in the same unit. Later steps are shorter, the last one almost zero."""
_DECIDED = 50.0
"""Nats per token. A pair with more has no weight, and the exponential function would overflow."""


def refine(
    examples: Examples, blocks: RefinedBlocks
) -> Generator[Work, None, tuple[HeldOutDirections, float]]:
    """The refined directions, also those made without each fold, and the dose that the vectors have."""
    folds = range(examples.num_folds) if examples.num_folds > 1 else ()
    refinements = [_Refinement(examples, blocks.steered, fold) for fold in (None, *folds)]
    for step in range(_NUM_STEPS):
        yield [*chain.from_iterable(one.derivatives() for one in refinements)]
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
    per_pair = sum(map(len, texts + 2 * command.pair_prompts)) / count
    parts = [count, *[count - count // num_folds] * num_folds]
    pairs = sum(_pairs_per_step(part) for part in parts)
    return round(2 * _NUM_STEPS * pairs * per_pair)


def _pairs_per_step(num_pairs: int) -> int:
    return min(math.ceil(num_pairs / _PART), _MAX_PAIRS)


class _Refinement:
    """The vectors that are made from the pairs of all folds but one."""

    def __init__(self, examples: Examples, blocks: tuple[int, ...], without_fold: int | None) -> None:
        self._examples = examples
        self._without_fold = without_fold
        self._blocks = blocks
        self._norms = examples.norms[list(blocks)][:, None]
        self._vectors = _START * examples.direction(blocks, without_fold).units.astype(np.float64)
        self._adam = Adam(self._vectors.shape, _STEP / math.sqrt(examples.hidden_size))
        pairs = [pair for pair, fold in enumerate(examples.folds) if fold != without_fold]
        self._order = _shuffled(pairs)
        self._num_pairs = _pairs_per_step(len(pairs))
        self._due: list[tuple[float, list[int], Derivative]] = []
        """What the step has asked for: a strength, pairs, and their derivative."""

    @property
    def dose(self) -> float:
        """The mean norm over the blocks."""
        return float(np.linalg.norm(self._vectors, axis=1).mean())

    def derivatives(self) -> list[Derivative]:
        """What the next step needs."""
        chosen = list(islice(self._order, self._num_pairs))
        starts = range(0, len(chosen), _PAIRS_PER_BATCH)
        batches = [chosen[start : start + _PAIRS_PER_BATCH] for start in starts]
        vectors = (self._norms * self._vectors).astype(np.float32)
        self._due = [
            (strength, pairs, Derivative(self._examples.factory.texts(pairs), added))
            for strength in (-1.0, 1.0)
            for added in [BlockVectors(self._blocks, np.float32(strength) * vectors)]
            for pairs in batches
        ]
        return [derivative for _, _, derivative in self._due]

    def update(self, rate: float) -> None:
        """Moves the vectors by what was computed. `rate`: relative to the first step's."""
        gradient = np.zeros_like(self._vectors)
        for strength, pairs, derivative in self._due:
            odds = derivative.logprobs[0::2] - derivative.logprobs[1::2]
            changes = odds - self._examples.log_odds[pairs]  # [len(pairs)]
            slopes = derivative.gradients[0::2] - derivative.gradients[1::2]  # [len(pairs), blocks, size]
            decided = np.minimum(strength * changes, _DECIDED)
            weights = self._examples.weights[pairs] / (1 + np.exp(decided))
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
    """All pairs in a random order, and then again in another one, without an end. Always the same."""
    rng = np.random.default_rng(0)
    while True:
        yield from rng.permutation(pairs).tolist()

"""Probes for a concept's texts with and without steering, and the measurements made from the results.

Defines each measurement and its unit. Does not know which measurements training needs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inference.interface.concepts import TrainConcept
from inference.scheduling.arrays import Array32, Array64
from inference.scheduling.probe import Probe
from inference.scheduling.steering import BlockVectors, Steering
from inference.steering.directions import Direction, unit_vectors

Groups = NDArray[np.int64]


@dataclass(frozen=True)
class Measurement:
    """The probes of some pairs and of some neutral texts."""

    pairs: list[int]
    positive: list[Probe]
    negative: list[Probe]
    neutral: list[Probe]

    @property
    def probes(self) -> list[Probe]:
        return self.positive + self.negative + self.neutral

    @cached_property
    def positive_logprobs(self) -> Array64:
        """[len(pairs)]: mean log probability of each positive text's tokens, in nats."""
        return np.array([probe.mean_logprob for probe in self.positive])

    @cached_property
    def negative_logprobs(self) -> Array64:
        """[len(pairs)]: the same for the negative texts."""
        return np.array([probe.mean_logprob for probe in self.negative])

    @property
    def neutral_logprob(self) -> float:
        """Mean over the neutral texts of the mean log probability of their tokens, in nats."""
        return float(np.mean([probe.mean_logprob for probe in self.neutral]))


class ProbeFactory:
    """Makes the probes for a concept's texts."""

    def __init__(self, command: TrainConcept) -> None:
        self._prompt = command.prompt_token_ids
        self._positive = list(zip(command.pair_prompts, command.positive, strict=True))
        self._negative = list(zip(command.pair_prompts, command.negative, strict=True))
        self._neutral = command.neutral
        self.groups: Groups = np.array(command.groups or range(len(command.positive)), np.int64)
        """[number of pairs]: the number of each pair's group."""

    @property
    def num_pairs(self) -> int:
        return len(self._positive)

    def capture(self) -> Measurement:
        """Probes for all texts, without steering. They also capture hidden states."""
        return Measurement(
            list(range(self.num_pairs)),
            [Probe(*text, captures=True) for text in self._positive],
            [Probe(*text, captures=True) for text in self._negative],
            self.capture_neutral().neutral,
        )

    def capture_neutral(self) -> Measurement:
        """Such probes for the neutral texts only."""
        return Measurement([], [], [], [Probe(self._prompt, text, captures=True) for text in self._neutral])

    def read(self, pairs: list[int], steering_of: Callable[[int], Steering]) -> Measurement:
        """Probes for `pairs`. `steering_of` gives a pair's steering."""
        steerings = [steering_of(pair) for pair in pairs]
        positive, negative = (
            [Probe(*texts[pair], steering) for pair, steering in zip(pairs, steerings, strict=True)]
            for texts in (self._positive, self._negative)
        )
        return Measurement(pairs, positive, negative, [])

    def read_neutral(self, steering: Steering) -> Measurement:
        """Probes for the neutral texts."""
        return Measurement([], [], [], [Probe(self._prompt, text, steering) for text in self._neutral])


class Examples:
    """What a concept's pairs look like in the model without steering."""

    def __init__(
        self, factory: ProbeFactory, plain: Measurement, norms: Iterable[float], max_folds: int = 4
    ) -> None:
        """`plain`: the result of `factory.capture`, computed. `norms`: mean norms of all blocks' output."""
        self.factory = factory
        self.plain = plain
        self.groups = factory.groups
        self.norms = np.array(tuple(norms))
        self._neutral = np.array([probe.mean_hidden for probe in plain.neutral])
        self.hidden_size = self._neutral.shape[2]
        self._positive, self._negative = (
            np.array([probe.mean_hidden for probe in side]).reshape(-1, *self._neutral.shape[1:])
            for side in (plain.positive, plain.negative)
        )
        # Each group counts once.
        _, numbers, sizes = np.unique(self.groups, return_inverse=True, return_counts=True)
        self.weights: Array64 = 1.0 / (sizes[numbers] * np.maximum(len(sizes), 1))
        """[number of pairs]: the weight of each pair in a mean."""
        self.num_folds = min(max_folds, self.num_groups)
        self.folds = (numbers % max(self.num_folds, 1)).tolist()
        """The fold of each pair. Pairs of one group are in one fold."""

    @property
    def num_groups(self) -> int:
        return len(np.unique(self.groups))

    def differences(self, block: int) -> Array64:
        """[num_pairs, hidden_size]: positive minus negative mean hidden state of each pair."""
        differences: Array64 = self._positive[:, block] - self._negative[:, block]
        return differences

    def direction(self, blocks: tuple[int, ...], without_fold: int | None = None) -> Direction:
        """The mean difference over the pairs of all folds but one. Strength 1 adds the mean norm."""
        chosen = list(blocks)
        inside = np.array(self.folds) != without_fold
        weights = np.where(inside, self.weights, 0.0)[:, None, None]
        differences = (weights * (self._positive[:, chosen] - self._negative[:, chosen])).sum(0)
        units = unit_vectors(differences)
        block = reading_block(blocks)
        return Direction(
            blocks=blocks,
            units=units,
            lengths=tuple(self.norms[chosen].tolist()),
            down_scale=1.0,
            max_strength=2.0,
            max_down_strength=2.0,
            reading_block=block,
            reading_range=self.reading_range(block, units[blocks.index(block)]),
        )

    def held_out(self, blocks: tuple[int, ...]) -> "HeldOutDirections":
        """The direction, and for each fold the direction that was made without it."""
        full = self.direction(blocks)
        if self.num_folds < 2:
            return HeldOutDirections(full, [full], self.folds)
        return HeldOutDirections(
            full, [self.direction(blocks, fold) for fold in range(self.num_folds)], self.folds
        )

    def lengths(self, blocks: tuple[int, ...], without_fold: int | None = None) -> Array64:
        """[len(blocks)]: norms of the mean difference over the pairs of all folds but one."""
        inside = np.array(self.folds) != without_fold
        weights = np.where(inside, self.weights, 0.0)[:, None, None]
        chosen = list(blocks)
        difference = (weights * (self._positive[:, chosen] - self._negative[:, chosen])).sum(0)
        lengths: Array64 = np.linalg.norm(difference, axis=1)
        return lengths

    def reading_range(self, block: int, unit: Array32) -> tuple[float, float]:
        """The mean projections of negative and of positive texts on a unit direction."""
        zero, one = (
            float(self.weights @ (side[:, block] @ unit)) for side in (self._negative, self._positive)
        )
        return zero, one

    def neutral_projection(self, block: int, unit: Array32) -> float:
        """The mean projection of the neutral texts on a unit direction."""
        return float((self._neutral[:, block] @ unit).mean())

    def logprob_gap(self) -> float:
        """How much less likely positive texts are than negative ones, in nats per token."""
        return float(self.weights @ (self.plain.negative_logprobs - self.plain.positive_logprobs))

    def sample(self, count: int) -> list[int]:
        """Up to `count` pairs, first one of each group."""
        seen: dict[int, int] = {}
        rank = [seen.setdefault(group, -1) for group in self.groups.tolist()]
        for pair, group in enumerate(self.groups.tolist()):
            seen[group] += 1
            rank[pair] = seen[group]
        return sorted(range(len(rank)), key=lambda pair: (rank[pair], pair))[:count]

    def changes(self, reading: Measurement) -> tuple[Array64, Array64]:
        """[len(pairs)] each: changes of the log probabilities of positive and negative texts by steering."""
        return (
            reading.positive_logprobs - self.plain.positive_logprobs[reading.pairs],
            reading.negative_logprobs - self.plain.negative_logprobs[reading.pairs],
        )

    def shifts(self, reading: Measurement) -> Array64:
        """[len(pairs)]: change of each pair's log odds of positive over negative, in nats per token."""
        positive, negative = self.changes(reading)
        return positive - negative

    def estimate(self, values: Array64, pairs: list[int]) -> "Estimate":
        """The mean of a value of each of `pairs`, in which each group counts once."""
        groups = self.groups[pairs]
        return Estimate.of(np.array([values[groups == group].mean() for group in np.unique(groups)]))


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error."""

    mean: float
    error: float | None
    """None: unknown, since there is only one value."""

    @classmethod
    def of(cls, values: Array64) -> "Estimate":
        count = len(values)
        error = float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else None
        return cls(float(values.mean()), error)


@dataclass(frozen=True)
class HeldOutDirections:
    """A direction, and for the pairs of each fold one that was made without them."""

    full: Direction
    by_fold: list[Direction]
    folds: list[int]

    def steering(self, pair: int, strength: float) -> Steering:
        """What to do to a pair's texts."""
        return adding(self.by_fold[self.folds[pair]], strength)

    def with_down(self, other: "HeldOutDirections") -> "HeldOutDirections":
        """Negative strengths steer the other directions' blocks. Both must have the same folds and doses."""
        pairs = zip(self.by_fold, other.by_fold, strict=True)
        by_fold = [_with_down(up, down) for up, down in pairs]
        return HeldOutDirections(_with_down(self.full, other.full), by_fold, self.folds)

    def rescaled(self, up: float, down: float) -> "HeldOutDirections":
        """Strength 1 has the dose `up`, and -1 the dose `down`, instead of 1."""

        def rescale(direction: Direction) -> Direction:
            lengths = tuple(up * length for length in direction.lengths)
            return replace(direction, lengths=lengths, down_scale=down / up)

        return self._each(rescale)

    def limited(self, down: float, up: float) -> "HeldOutDirections":
        """The same directions with these largest strengths."""
        return self._each(lambda one: replace(one, max_strength=up, max_down_strength=down))

    def _each(self, change: Callable[[Direction], Direction]) -> "HeldOutDirections":
        by_fold = [change(direction) for direction in self.by_fold]
        return HeldOutDirections(change(self.full), by_fold, self.folds)


def _with_down(up: Direction, down: Direction) -> Direction:
    """A direction that steers the blocks of `up` with positive strengths, those of `down` with negative ones.

    Where both have a block, it must be the same there.
    """
    if up.blocks == down.blocks:
        return up
    rows = {
        block: (unit, length)
        for one in (down, up)
        for block, unit, length in zip(one.blocks, one.units, one.lengths, strict=True)
    }
    blocks = tuple(sorted(rows))
    return replace(
        up,
        blocks=blocks,
        units=np.stack([rows[block][0] for block in blocks]),
        lengths=tuple(rows[block][1] for block in blocks),
        up_blocks=up.blocks,
        down_blocks=down.blocks,
    )


def reading_block(blocks: tuple[int, ...]) -> int:
    """The block to read: the middle one of those that are steered."""
    return blocks[len(blocks) // 2]


def adding(direction: Direction, strength: float) -> Steering:
    """What a request with this strength gets."""
    steered = direction.steered(strength)
    vectors = direction.vectors(direction.clip(strength))
    return Steering(BlockVectors(steered, vectors[np.isin(direction.blocks, steered)]))

"""A concept's texts, read by the model with and without steering, and what the differences say.

Knows what a measurement needs and means; does not know which ones training asks for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from inference.interface.protocol import TrainConcept
from inference.scheduling.probe import Array32, Array64, Probe
from inference.steering.directions import Calibration, unit_vectors

_MAX_FOLDS = 4


@dataclass(frozen=True)
class Measurement:
    """Pairs of texts and the neutral texts, all read under the same steering."""

    pairs: list[int]
    positive: list[Probe]
    negative: list[Probe]
    neutral: list[Probe]

    @property
    def probes(self) -> list[Probe]:
        return self.positive + self.negative + self.neutral

    @property
    def log_odds(self) -> Array64:
        """[len(pairs)], of each positive text over its negative, in nats per token."""
        both = zip(self.positive, self.negative, strict=True)
        return np.array([positive.mean_logprob - negative.mean_logprob for positive, negative in both])

    @property
    def mean_logprob(self) -> float:
        """Of the neutral texts, in nats per token."""
        return float(np.mean([probe.mean_logprob for probe in self.neutral]))


class ProbeFactory:
    """Makes the probes for a concept's texts."""

    def __init__(self, command: TrainConcept) -> None:
        self._command = command
        self.num_pairs = len(command.positive)

    def capture(self) -> Measurement:
        """All texts, without steering, their hidden states wanted."""
        command = self._command
        every = list(range(self.num_pairs))
        texts = (command.positive, command.negative, command.neutral)
        return Measurement(
            every, *([self._probe(text, None, captures=True) for text in side] for side in texts)
        )

    def read(
        self, pairs: list[int], vectors_for: Callable[[int], Array32], neutral: Array32 | None
    ) -> Measurement:
        """`vectors_for` a pair and for the `neutral` texts (None: these are not read)."""
        command = self._command
        return Measurement(
            pairs,
            [self._probe(command.positive[pair], vectors_for(pair)) for pair in pairs],
            [self._probe(command.negative[pair], vectors_for(pair)) for pair in pairs],
            [] if neutral is None else [self._probe(text, neutral) for text in command.neutral],
        )

    def _probe(self, text: list[int], vectors: Array32 | None, captures: bool = False) -> Probe:
        return Probe(self._command.prompt_token_ids, text, vectors, captures)


class Examples:
    """What a concept's examples say of its direction, and of what steering by it does.

    A pair is only ever measured with a direction that was made without it: that of the other folds.
    """

    def __init__(
        self, reader: ProbeFactory, plain: Measurement, calibration: Calibration, blocks: tuple[int, ...]
    ) -> None:
        """`plain`: what `reader.capture` asked for, computed."""
        self._reader = reader
        self._plain = plain
        self._log_odds = plain.log_odds
        self._calibration = calibration
        self._blocks = blocks
        both = zip(plain.positive, plain.negative, strict=True)
        self.differences = np.array([p.mean_hidden - n.mean_hidden for p, n in both])
        """[N, num_layers, hidden_size], of each pair."""
        self.difference: Array32 = self.differences.mean(0).astype(np.float32)
        """[num_layers, hidden_size]: their mean, the direction."""
        self._unit = self.unit_vectors(self.difference)
        self._unit_without = [self._held_out(fold) for fold in range(min(_MAX_FOLDS, len(self.differences)))]

    def unit_vectors(self, difference: Array32) -> Array32:
        """[len(blocks), hidden_size], of the norms of the blocks' output."""
        return unit_vectors(difference, self._blocks, self._calibration.norms)

    def steered(self, pairs: list[int], dose: float) -> Measurement:
        """Some pairs and the neutral texts, steered along the direction."""
        folds = len(self._unit_without)
        return self._reader.read(
            pairs, lambda pair: dose * self._unit_without[pair % folds], dose * self._unit
        )

    def pushed(self, pairs: list[int], vectors: Array32) -> Measurement:
        """Some pairs, steered by any vectors."""
        return self._reader.read(pairs, lambda _: vectors, None)

    def shift(self, reading: Measurement) -> float:
        """By how much the pairs' log odds moved, in nats per token."""
        return float((reading.log_odds - self._log_odds[reading.pairs]).mean())

    def log_perplexity_ratio(self, reading: Measurement) -> float:
        """Of the neutral texts, over that without steering."""
        return self._plain.mean_logprob - reading.mean_logprob

    def perplexity_ratio(self, reading: Measurement) -> float:
        return math.exp(self.log_perplexity_ratio(reading))

    def _held_out(self, fold: int) -> Array32:
        """The direction of the pairs that are not in a fold; of all if there is only one pair."""
        inside = np.arange(len(self.differences)) % _MAX_FOLDS == fold
        others = self.differences[~inside] if not inside.all() else self.differences
        return self.unit_vectors(others.mean(0).astype(np.float32))

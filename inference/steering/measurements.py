"""Probes for a concept's texts with and without steering, and the measurements made from the results.

Defines each measurement and its unit. Does not know which measurements training needs.
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
    """The probes of some example pairs and of the neutral texts, all for the same steering."""

    pairs: list[int]
    positive: list[Probe]
    negative: list[Probe]
    neutral: list[Probe]

    @property
    def probes(self) -> list[Probe]:
        return self.positive + self.negative + self.neutral

    @property
    def log_odds(self) -> Array64:
        """[len(pairs)]: log odds of each positive text over its negative text, in nats per token."""
        both = zip(self.positive, self.negative, strict=True)
        return np.array([positive.mean_logprob - negative.mean_logprob for positive, negative in both])

    @property
    def mean_logprob(self) -> float:
        """Mean log probability of the neutral texts, in nats per token."""
        return float(np.mean([probe.mean_logprob for probe in self.neutral]))


class ProbeFactory:
    """Makes the probes for a concept's texts."""

    def __init__(self, command: TrainConcept) -> None:
        self._command = command
        self.num_pairs = len(command.positive)

    def capture(self) -> Measurement:
        """Probes for all texts, without steering. They also capture hidden states."""
        command = self._command
        all_pairs = list(range(self.num_pairs))
        texts = (command.positive, command.negative, command.neutral)
        return Measurement(
            all_pairs, *([self._probe(text, None, captures=True) for text in side] for side in texts)
        )

    def read(
        self, pairs: list[int], vectors_for: Callable[[int], Array32], neutral: Array32 | None
    ) -> Measurement:
        """Probes for `pairs` and the neutral texts, with steering.

        `vectors_for` gives a pair's vectors. `neutral`: vectors for the neutral texts; None leaves them out.
        """
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
    """A concept's direction, made from its examples, and the measured effect of steering along it.

    A pair is always measured with a direction that was made without it, from the pairs of the other folds.
    """

    def __init__(
        self, factory: ProbeFactory, plain: Measurement, calibration: Calibration, blocks: tuple[int, ...]
    ) -> None:
        """`plain`: the result of `factory.capture`, after its probes were computed."""
        self._factory = factory
        self._plain = plain
        self._log_odds = plain.log_odds
        self._calibration = calibration
        self._blocks = blocks
        both = zip(plain.positive, plain.negative, strict=True)
        self.differences = np.array([p.mean_hidden - n.mean_hidden for p, n in both])
        """[N, num_layers, hidden_size]: positive minus negative mean hidden state of each pair."""
        self.difference: Array32 = self.differences.mean(0).astype(np.float32)
        """[num_layers, hidden_size]: the direction, the mean over the pairs."""
        self._unit = self.unit_vectors(self.difference)
        self._unit_without = [self._held_out(fold) for fold in range(min(_MAX_FOLDS, len(self.differences)))]

    def unit_vectors(self, difference: Array32) -> Array32:
        """[len(blocks), hidden_size], with the mean norms of the decoder blocks' output."""
        return unit_vectors(difference, self._blocks, self._calibration.norms)

    def steered(self, pairs: list[int], dose: float) -> Measurement:
        """Probes for `pairs` and the neutral texts, steered along the direction."""
        folds = len(self._unit_without)
        return self._factory.read(
            pairs, lambda pair: dose * self._unit_without[pair % folds], dose * self._unit
        )

    def steered_by(self, pairs: list[int], vectors: Array32) -> Measurement:
        """Probes for `pairs` only, steered by any vectors."""
        return self._factory.read(pairs, lambda _: vectors, None)

    def shift(self, reading: Measurement) -> float:
        """Mean change of the pairs' log odds by steering, in nats per token."""
        return float((reading.log_odds - self._log_odds[reading.pairs]).mean())

    def log_perplexity_ratio(self, reading: Measurement) -> float:
        """Log of `perplexity_ratio`."""
        return self._plain.mean_logprob - reading.mean_logprob

    def perplexity_ratio(self, reading: Measurement) -> float:
        """Perplexity of the neutral texts, divided by their perplexity without steering."""
        return math.exp(self.log_perplexity_ratio(reading))

    def _held_out(self, fold: int) -> Array32:
        """The unit vectors made from the pairs outside the fold; from all pairs if there is only one."""
        inside = np.arange(len(self.differences)) % _MAX_FOLDS == fold
        others = self.differences[~inside] if not inside.all() else self.differences
        return self.unit_vectors(others.mean(0).astype(np.float32))

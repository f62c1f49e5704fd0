"""Measures the effect of steering by a concept on texts that its training has not seen."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from app.schemas.reports import ConceptReport
from benchmarks.steering.compare import Comparison
from benchmarks.steering.plain import PlainModel, Vectors
from benchmarks.steering.subjects import Pair
from inference.interface.requests import SteeringSpec
from inference.steering.direction_files import DirectionFiles
from inference.steering.steerer import Steerer

STRENGTHS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
_NUM_RANDOM = 4
_NUM_KL_TEXTS = 4


@dataclass
class Evaluated:
    """A concept that Tiller has trained, with its held-out pairs and its measurements."""

    name: str
    digest: str
    held_out: list[Pair]
    report: ConceptReport
    comparisons: list[Comparison] = field(default_factory=list)
    """One for each goal."""
    shifts: dict[float, float] = field(default_factory=dict)
    """By strength: shift of the held-out pairs' log odds, in nats per token."""
    ratios: dict[float, float] = field(default_factory=dict)
    """By strength: perplexity of the neutral texts, divided by that without steering."""
    divergence: dict[float, float] = field(default_factory=dict)
    """By strength: KL divergence of next-token distributions on neutral texts, in nats."""
    random_shift: float = math.nan
    """Half of the change from strength -1 to 1 by random directions of the same norm (mean)."""
    kept: dict[str, float] = field(default_factory=dict)
    """By other concept: the share of the shift at 1 that remains when the other concept is added."""


class Laboratory:
    """Reads directions from Tiller's cache, and measures them in plain transformers."""

    def __init__(self, model: PlainModel, directory: Path, neutral: list[str]) -> None:
        """`directory`: has the directions for this model."""
        self._model = model
        self._files = DirectionFiles(directory)
        self._neutral = neutral
        self._steerer = Steerer()
        self._steerer.calibration = self._files.load_calibration()
        self._plain_neutral = model.logprobs(neutral)

    def measure(self, concept: Evaluated) -> None:
        self._load(concept)
        plain = self._log_odds(concept)
        concept.shifts[0.0], concept.ratios[0.0] = 0.0, 1.0
        for strength in filter(None, STRENGTHS):
            with self._model.steered(self._vectors([concept], strength)):
                concept.shifts[strength] = float((self._log_odds(concept) - plain).mean())
                loss = (self._plain_neutral - self._model.logprobs(self._neutral)).mean()
                concept.ratios[strength] = math.exp(loss)
        concept.random_shift = self._random_shift(concept)
        concept.divergence = {strength: self._divergence(concept, strength) for strength in (-1.0, 1.0)}

    def measure_together(self, concept: Evaluated, other: Evaluated) -> None:
        """Measures how much of each concept's effect remains when both are added."""
        for first, second in ((concept, other), (other, concept)):
            plain = self._log_odds(first)
            with self._model.steered(self._vectors([first, second], 1.0)):
                together = float((self._log_odds(first) - plain).mean())
            first.kept[second.name] = together / first.shifts[1.0]

    def _load(self, concept: Evaluated) -> None:
        found = self._files.load(concept.digest)
        if found is None:
            raise FileNotFoundError(f"no direction of {concept.name} in the cache")
        self._steerer.add(concept.digest, found[0])

    def _vectors(self, concepts: list[Evaluated], strength: float) -> Vectors:
        """By decoder block: the vector [hidden_size] that Tiller adds to its output."""
        spec = SteeringSpec({concept.digest: strength for concept in concepts})
        steering = self._steerer.steer(spec, num_prompt_tokens=1).steering
        if steering is None or steering.added is None:
            return {}
        return dict(zip(steering.added.blocks, torch.from_numpy(steering.added.vectors), strict=True))

    def _log_odds(self, concept: Evaluated) -> torch.Tensor:
        sides = [
            self._model.logprobs([pair[side] for pair in concept.held_out])
            for side in ("positive", "negative")
        ]
        return sides[0] - sides[1]

    def _random_shift(self, concept: Evaluated) -> float:
        vectors = {sign: self._vectors([concept], sign) for sign in (1.0, -1.0)}
        generator = torch.Generator().manual_seed(0)
        shifts = []
        for _ in range(_NUM_RANDOM):
            units = {
                block: torch.nn.functional.normalize(torch.randn(vector.shape, generator=generator), dim=0)
                for block, vector in sorted((vectors[-1.0] | vectors[1.0]).items())
            }
            odds = []
            for sign, added in vectors.items():
                with self._model.steered({b: sign * v.norm() * units[b] for b, v in added.items()}):
                    odds.append(self._log_odds(concept))
            shifts.append(abs(float((odds[0] - odds[1]).mean())) / 2)
        return sum(shifts) / len(shifts)

    def _divergence(self, concept: Evaluated, strength: float) -> float:
        divergences = []
        for text in self._neutral[:_NUM_KL_TEXTS]:
            plain = self._model.distributions(text)
            with self._model.steered(self._vectors([concept], strength)):
                steered = self._model.distributions(text)
            divergences.append((plain.exp() * (plain - steered)).sum(-1).mean())
        return float(torch.stack(divergences).mean())

"""Compares the decoder blocks at which a concept can be steered, by its held-out pairs.

At each candidate the concept is steered until it costs a certain fluency. The groups of several blocks go on,
and a single block that is clearly better: their effect on generated answers decides between them.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np

from inference.interface.config import ConfigError
from inference.scheduling.arrays import Array64
from inference.scheduling.probe import Probe, Work
from inference.steering.measurements import Examples, HeldOutDirections, Measurement

_DEFAULT_DEPTH = 0.6
_DEPTHS = (0.5, 0.7, 0.8)
_MIDDLE_DEPTHS = tuple(step / 30 for step in range(11, 24))
_LATE_DEPTHS = tuple(step / 30 for step in range(19, 28, 2))
"""As shares of the decoder blocks. docs/steering.md gives the reasons."""
_FIRST_DOSE = 0.15
_MAX_DOSE = 0.5
_COST = 0.3
"""Loss of fluency at which the candidates are compared, in nats per token. See `_cost`."""
_LEAST_COST = 0.01
_MAX_PAIRS = 8
_ROUNDS = 2
_REFINED_STEP = 2
"""Of the blocks of a group. At equal fluency, half of them do as well, and are less to differentiate."""
_NUM_RIVALS = 1
_CLEARLY_BETTER = 1.1
"""Another candidate must have at least this many times the effect of the default."""


@dataclass(frozen=True)
class Finalist:
    """Decoder blocks that may be chosen."""

    directions: HeldOutDirections
    dose: float
    """The dose at which the candidates were compared: about the largest fluent one."""
    shift_per_dose: tuple[float, float]
    """Shift of the log odds per dose at this dose, for negative and for positive strengths."""
    learned_dose: float | None = None
    """The dose that refined vectors came out with. None: the directions are mean differences."""


class RefinedBlocks(NamedTuple):
    steered: tuple[int, ...]
    read: int
    """Another block, near the middle of them: what is read is a mean difference, which is not refined."""


def candidates(num_layers: int, configured: tuple[int, ...] | None) -> list[tuple[int, ...]]:
    """The sets of blocks to try, the default first. Only the configured ones, if there are any.

    Raises ConfigError if the model does not have a configured block.
    """
    if configured is None:
        singles = [(_block(depth, num_layers),) for depth in (_DEFAULT_DEPTH, *_DEPTHS)]
        groups = [_group(depths, num_layers) for depths in (_MIDDLE_DEPTHS, _LATE_DEPTHS)]
        return list(dict.fromkeys([*singles, *groups]))
    for block in configured:
        if not 0 <= block < num_layers:
            raise ConfigError(
                f"engine.steering_blocks contains {block}, but the model has decoder blocks "
                f"0 to {num_layers - 1}"
            )
    return [tuple(sorted(configured))]


def refined_blocks(sets: list[tuple[int, ...]], num_layers: int) -> RefinedBlocks | None:
    """Where refined directions steer: every second block of the middle group, or the configured blocks.

    None if no other block is left to be read.
    """
    groups = [blocks for blocks in sets if len(blocks) > 1]
    blocks = groups[0][::_REFINED_STEP] if len(sets) > 1 and groups else sets[0]
    middle = blocks[len(blocks) // 2]
    others = sorted(set(range(num_layers)) - set(blocks), key=lambda block: (abs(block - middle), -block))
    return RefinedBlocks(blocks, others[0]) if others else None


def first_dose(blocks: tuple[int, ...]) -> float:
    """A dose to begin with. Several blocks need less each."""
    return _FIRST_DOSE * float(len(blocks) ** (-2 / 3))


def search(examples: Examples, sets: list[tuple[int, ...]]) -> Generator[Work, None, list[Finalist]]:
    """The sets that may be chosen. The first one is chosen if generated answers do not decide.

    Several blocks have a larger effect on answers, at equal fluency, than held-out pairs show. So the best
    single block is a rival only if it is clearly better on the pairs. Of the single blocks, the first one is
    the default; another one is better only if it is so clearly.
    """
    pairs = examples.sample(_MAX_PAIRS)
    trials = [_Trial(examples, examples.held_out(blocks), first_dose(blocks), pairs) for blocks in sets]
    yield from _measure(trials)
    singles = [trial for trial in trials if len(trial.directions.full.blocks) == 1]
    groups = [trial for trial in trials if len(trial.directions.full.blocks) > 1]
    # At the second dose, which is about right. The default and the best others are enough.
    by_effect = sorted(singles[1:], key=lambda trial: -trial.effects.mean())
    singles = singles[:1] + by_effect[:_NUM_RIVALS]
    yield from _measure([*singles, *groups])
    if singles:
        best = max(singles, key=lambda trial: trial.effects.mean())
        single = best if _is_clearly_better(examples, best, singles[0], pairs) else singles[0]
        if all(_is_clearly_better(examples, single, group, pairs) for group in groups):
            groups.insert(0, single)
    return [trial.finalist for trial in groups]


def find_dose(
    examples: Examples, directions: HeldOutDirections, dose: float
) -> Generator[Work, None, Finalist]:
    """The refined directions at the dose at which candidates are compared. `dose`: that of the vectors."""
    trial = _Trial(examples, directions, dose, examples.sample(_MAX_PAIRS))
    for _ in range(_ROUNDS):
        yield from _measure([trial])
    return replace(trial.finalist, learned_dose=dose)


class _Trial:
    """The effect and the cost of steering at some blocks, with strengths of both signs."""

    def __init__(
        self, examples: Examples, directions: HeldOutDirections, dose: float, pairs: list[int]
    ) -> None:
        self.directions = directions
        self.dose = dose
        self.shift_per_dose = (0.0, 0.0)
        self.effects: Array64 = np.zeros(len(pairs))
        """[len(pairs)]: shift of the log odds from the negative to the positive strength, at _COST."""
        self._examples = examples
        self._pairs = pairs
        self._readings: list[Measurement] = []

    @property
    def finalist(self) -> Finalist:
        return Finalist(self.directions, self.dose, self.shift_per_dose)

    def probes(self) -> list[Probe]:
        self._readings = [
            self._examples.factory.read(self._pairs, partial(self.directions.steering, strength=dose))
            for dose in (-self.dose, self.dose)
        ]
        return [probe for reading in self._readings for probe in reading.probes]

    def adjust(self) -> None:
        """Takes the results of the probes, and sets the dose that would have _COST.

        To first order the effect is proportional to the dose, and the cost to its square.
        """
        shifts = [self._examples.shifts(reading) for reading in self._readings]
        cost = float(np.mean([_cost(self._examples, reading) for reading in self._readings]))
        factor = math.sqrt(_COST / max(cost, _LEAST_COST))
        down, up = (self._examples.estimate(shift, self._pairs).mean / self.dose for shift in shifts)
        self.shift_per_dose = (down, up)
        self.effects = (shifts[1] - shifts[0]) * factor
        self.dose = min(self.dose * min(max(factor, 0.5), 2.0), _MAX_DOSE)


def _measure(trials: list[_Trial]) -> Generator[Work, None, None]:
    yield list(chain.from_iterable(trial.probes() for trial in trials))
    for trial in trials:
        trial.adjust()


def _cost(examples: Examples, reading: Measurement) -> float:
    """Mean loss of log probability of a pair's two texts, in nats per token.

    The concept itself makes one text more likely and the other one less, so it hardly counts.
    """
    positive, negative = examples.changes(reading)
    return -examples.estimate((positive + negative) / 2, reading.pairs).mean


def _is_clearly_better(examples: Examples, trial: _Trial, other: _Trial, pairs: list[int]) -> bool:
    """By more than the standard error of the difference. A trial is not better than itself."""
    difference = examples.estimate(trial.effects - other.effects, pairs)
    enough = trial.effects.mean() >= _CLEARLY_BETTER * other.effects.mean()
    return bool(enough) and difference.mean > (difference.error or math.inf)


def _group(depths: tuple[float, ...], num_layers: int) -> tuple[int, ...]:
    """The blocks at these depths, without the last one: its output goes into the head, which is too late."""
    blocks = sorted({_block(depth, num_layers) for depth in depths})
    return tuple(block for block in blocks if block < num_layers - 1) or tuple(blocks)


def _block(depth: float, num_layers: int) -> int:
    return min(round(depth * num_layers), num_layers - 1)

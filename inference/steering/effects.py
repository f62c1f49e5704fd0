"""Measures a trained concept on its pairs: the effect at each strength, and against random directions."""

import math
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from itertools import chain

import numpy as np

from inference.interface.concepts import Effect, TrainConcept
from inference.scheduling.probe import Work
from inference.scheduling.steering import Steering
from inference.steering.directions import Direction, unit_vectors
from inference.steering.measurements import Estimate, Examples, HeldOutDirections, Measurement, adding

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)

_MAX_PAIRS = 16
_NUM_RANDOM_DIRECTIONS = 32
_PAIRS_PER_RANDOM_DIRECTION = 2
_ANSWERS = 26
"""About how many times training asks all questions."""
_TOKENS_PER_ANSWER = 48


def measured_pairs(examples: Examples) -> list[int]:
    """The pairs on which effects are measured."""
    return examples.sample(_MAX_PAIRS)


def measure(
    examples: Examples, directions: HeldOutDirections
) -> Generator[Work, None, tuple[list[Effect], Estimate]]:
    """The effects at all STRENGTHS, on pairs that the direction was made without, and on neutral texts.

    Also the change of the shift from strength -1 to 1.
    """
    pairs = measured_pairs(examples)
    strengths = [strength for strength in STRENGTHS if strength]
    read = {s: examples.factory.read(pairs, partial(directions.steering, strength=s)) for s in strengths}
    neutral = {s: examples.factory.read_neutral(adding(directions.full, s)) for s in strengths}
    yield list(chain.from_iterable(reading.probes for reading in (*read.values(), *neutral.values())))
    effects = [Effect(0.0, 0.0, 0.0, 1.0)]
    for strength in strengths:
        shift = examples.estimate(examples.shifts(read[strength]), pairs)
        loss = examples.plain.neutral_logprob - neutral[strength].neutral_logprob
        effects.append(Effect(strength, shift.mean, shift.error, math.exp(loss)))
    change = examples.estimate(examples.shifts(read[1.0]) - examples.shifts(read[-1.0]), pairs)
    return sorted(effects, key=lambda effect: effect.strength), change


def measure_specificity(
    examples: Examples, direction: Direction, change: Estimate
) -> Generator[Work, None, Estimate | None]:
    """`change`, relative to the mean change by random directions of the same norm. None if theirs is 0.

    `change` is that of the shift from strength -1 to 1. A change that both signs share is not an effect of
    the concept but loss of fluency. Each random direction is measured on few pairs; that makes its change
    look rather larger than it is, since it differs from pair to pair.
    """
    pairs = measured_pairs(examples)
    count = min(_PAIRS_PER_RANDOM_DIRECTION, len(pairs))
    random = _random_directions(direction)
    subsets = [
        [pairs[(number * count + i) % len(pairs)] for i in range(count)] for number in range(len(random))
    ]
    read = [
        [_read_by(examples, subset, adding(one, sign)) for sign in (-1.0, 1.0)]
        for one, subset in zip(random, subsets, strict=True)
    ]
    yield list(chain.from_iterable(reading.probes for both in read for reading in both))
    changes = [examples.shifts(up) - examples.shifts(down) for down, up in read]
    return _ratio(change, Estimate.of(np.abs([values.mean() for values in changes])))


def estimate_tokens(command: TrainConcept) -> int:
    """About how many tokens a training of the command reads and generates."""
    count = len(command.positive)
    answers = _ANSWERS * len(command.questions) * _TOKENS_PER_ANSWER
    if not count:
        return sum(map(len, command.neutral)) + answers // 4
    texts = sum(map(len, command.positive)) + sum(map(len, command.negative))
    neutral = sum(map(len, command.neutral))
    per_pair = texts / count
    pairs = min(_MAX_PAIRS, count)
    searched = 20 * min(8, count)
    measured = (len(STRENGTHS) - 1) * pairs
    compared = 2 * _NUM_RANDOM_DIRECTIONS * min(_PAIRS_PER_RANDOM_DIRECTION, count)
    return round(texts + 5 * neutral + (searched + measured + compared) * per_pair + answers)


def _read_by(examples: Examples, pairs: list[int], steering: Steering) -> Measurement:
    return examples.factory.read(pairs, lambda _: steering)


def _random_directions(like: Direction) -> list[Direction]:
    """Isotropic random directions with the same blocks and doses. Always the same ones."""
    rng = np.random.default_rng(0)
    shape = (_NUM_RANDOM_DIRECTIONS, *like.units.shape)
    units = [unit_vectors(rows) for rows in rng.standard_normal(shape).astype(np.float32)]
    return [replace(like, units=rows) for rows in units]


def _ratio(effect: Estimate, typical: Estimate) -> Estimate | None:
    """The ratio, with the error that follows from both errors to first order."""
    if not typical.mean:
        return None
    ratio = effect.mean / typical.mean
    parts = [(one.error or 0.0) / one.mean if one.mean else 0.0 for one in (effect, typical)]
    return Estimate(ratio, abs(ratio) * math.hypot(*parts))

"""Calibrates a model, finds a concept's direction and dose, and measures them. docs/steering.md says why.

The steps are generators: each yields the probes it needs next, and continues when they are computed. They do
not know how the engine computes probes, and they know no requests.
"""

import math
import random
from collections.abc import Callable, Generator, Sequence

import numpy as np

from inference.interface.protocol import ConceptReport, Effect, TrainConcept
from inference.scheduling.probe import Array32, Array64, Probe
from inference.steering import report
from inference.steering.directions import Calibration, Direction, unit_vectors
from inference.steering.measurements import Examples, ProbeFactory

TRAINING_VERSION = 1
"""Increase it when a change of the code gives another direction, dose or report for the same examples."""

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)

_TARGET_SHIFT = 0.75
"""Nats per token. More than the report requires, since the effect on other texts may be smaller."""
_MAX_PERPLEXITY_RATIO = 1.35
_MAX_TUNING_STEPS = 3
_TUNING_TOLERANCE = 0.1
_MAX_TUNED_ON = 8
_MAX_REPORTED_ON = 12
_NUM_RANDOM_DIRECTIONS = 3
_ROUNDING = 1e-4
"""A smaller difference, relative to the activations' norm, may be rounding alone."""

_CAP_DOSES = (0.2, 0.3, 0.45, 0.675)
_CAP_PERPLEXITY_RATIO = 1.5


class UntrainableError(Exception):
    """The examples give no direction. The message is for the author of the examples."""


def calibrate(
    factory: ProbeFactory, blocks: tuple[int, ...], seed: int = 0
) -> Generator[list[Probe], None, Calibration]:
    """Measures the mean norms of the decoder blocks' output, and the cap.

    The cap is the dose of a random direction at which the perplexity of the neutral texts rises to
    _CAP_PERPLEXITY_RATIO times. Uses only the neutral texts.
    """
    plain = factory.capture().neutral
    yield plain
    norms = tuple(np.mean([probe.mean_norm for probe in plain], axis=0).tolist())
    [direction] = _random_directions(1, plain[0].mean_hidden.shape, seed)
    unit = unit_vectors(direction, blocks, norms)
    costs: list[float] = []
    for dose in _CAP_DOSES:
        steered = [factory.read([], lambda _: unit, sign * dose * unit).neutral for sign in (-1, 1)]
        yield steered[0] + steered[1]
        costs.append(max(_mean_logprob(plain) - _mean_logprob(probes) for probes in steered))
        if costs[-1] >= math.log(_CAP_PERPLEXITY_RATIO):
            break
    return Calibration(norms, _crossing(_CAP_DOSES, costs, math.log(_CAP_PERPLEXITY_RATIO)))


def train(
    factory: ProbeFactory,
    calibration: Calibration,
    blocks: tuple[int, ...],
    seed: int,
    publish: Callable[[Direction], None],
) -> Generator[list[Probe], None, ConceptReport]:
    """Returns the report. Calls `publish` with the direction and dose before it measures their effects.

    Raises UntrainableError if the examples give no direction.
    """
    plain = factory.capture()
    yield plain.probes
    examples = Examples(factory, plain, calibration, blocks)
    _check(examples.difference[list(blocks)], np.array(calibration.norms)[list(blocks)])
    tuned_on, reported_on = _split(factory.num_pairs)
    dose = yield from _tune(examples, calibration.cap, tuned_on)
    publish(Direction(examples.difference, dose))
    effects: list[Effect] = []
    specificity = None
    if reported_on:
        effects = yield from _measure_effects(examples, dose, reported_on)
        specificity = yield from _measure_specificity(examples, dose, reported_on, effects, seed)
    return report.judge(
        num_examples=factory.num_pairs,
        num_held_out=len(reported_on),
        agreement=report.agreement(examples.differences[:, blocks[0]]),
        effects=effects,
        specificity=specificity,
        block=blocks[0],
        dose=dose,
    )


def estimate_tokens(command: TrainConcept) -> int:
    """About how many tokens `train` reads. The progress is relative to this number."""
    tuned_on, reported_on = _split(len(command.positive))
    neutral = sum(map(len, command.neutral))
    texts = sum(map(len, command.positive)) + sum(map(len, command.negative))
    per_pair = texts / len(command.positive)
    tuning = 2 * _MAX_TUNING_STEPS * (len(tuned_on) * per_pair + neutral)
    effects = (len(STRENGTHS) - 1) * (len(reported_on) * per_pair + neutral)
    specificity = 2 * _NUM_RANDOM_DIRECTIONS * len(reported_on) * per_pair
    return round(texts + neutral + tuning + effects + specificity)


def _check(difference: Array32, norms: Array64) -> None:
    """Raises UntrainableError if the difference is not finite, or zero except for rounding.

    `difference`: [len(blocks), hidden_size]. `norms`: mean norms of these decoder blocks' output.
    """
    lengths = np.linalg.norm(difference, axis=1)
    if not np.isfinite(lengths).all():
        raise UntrainableError("the model's activations for these examples are not finite")
    if not (lengths > _ROUNDING * norms).all():
        raise UntrainableError(
            "the model's activations are the same for the positive and the negative examples"
        )


def _split(num_pairs: int) -> tuple[list[int], list[int]]:
    """The pairs for tuning the dose, and other pairs for the report."""
    if num_pairs == 1:
        return [], []
    order = random.Random(0).sample(range(num_pairs), num_pairs)  # noqa: S311 - any order is fine
    num_tuned_on = min(_MAX_TUNED_ON, num_pairs // 2)
    return order[:num_tuned_on], order[num_tuned_on : num_tuned_on + _MAX_REPORTED_ON]


def _tune(examples: Examples, cap: float, pairs: list[int]) -> Generator[list[Probe], None, float]:
    """The smallest dose with which strengths 1 and -1 reach _TARGET_SHIFT, within the limits for fluency.

    The limits are _MAX_PERPLEXITY_RATIO and the cap. To first order the effect is proportional to the dose,
    and the cost in fluency to its square. Without pairs to measure, the dose is half the cap or less.
    """
    dose = cap / 2
    for _ in range(_MAX_TUNING_STEPS):
        down, up = examples.steered(pairs, -dose), examples.steered(pairs, dose)
        yield down.probes + up.probes
        effect = min(-examples.shift(down), examples.shift(up)) if pairs else _TARGET_SHIFT
        cost = max(map(examples.log_perplexity_ratio, (down, up)))
        wanted = dose * _TARGET_SHIFT / effect if effect > 0 else cap
        affordable = dose * math.sqrt(math.log(_MAX_PERPLEXITY_RATIO) / cost) if cost > 0 else cap
        last, dose = dose, min(wanted, affordable, 2 * dose, cap)
        if abs(dose / last - 1) < _TUNING_TOLERANCE:
            break
    return dose


def _measure_effects(
    examples: Examples, dose: float, pairs: list[int]
) -> Generator[list[Probe], None, list[Effect]]:
    readings = {strength: examples.steered(pairs, strength * dose) for strength in STRENGTHS if strength}
    yield [probe for reading in readings.values() for probe in reading.probes]
    effects = [
        Effect(strength, examples.shift(reading), examples.perplexity_ratio(reading))
        for strength, reading in readings.items()
    ]
    return sorted([*effects, Effect(0.0, 0.0, 1.0)], key=lambda effect: effect.strength)


def _measure_specificity(
    examples: Examples, dose: float, pairs: list[int], effects: list[Effect], seed: int
) -> Generator[list[Probe], None, float | None]:
    """The effect, relative to the mean effect of random directions of the same norm. None if theirs is 0.

    The effect is the change of the shift from strength -1 to 1. A change that both signs share is not an
    effect of the concept but loss of fluency.
    """
    directions = _random_directions(_NUM_RANDOM_DIRECTIONS, examples.difference.shape, seed)
    units = [examples.unit_vectors(direction) for direction in directions]
    both = [
        (examples.steered_by(pairs, -dose * unit), examples.steered_by(pairs, dose * unit)) for unit in units
    ]
    yield [probe for down, up in both for probe in down.probes + up.probes]
    typical = float(np.mean([abs(examples.shift(up) - examples.shift(down)) for down, up in both]))
    return (effects[-1].shift - effects[0].shift) / typical if typical else None


def _random_directions(count: int, shape: tuple[int, ...], seed: int) -> list[Array32]:
    """Isotropic random directions, not normalized."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for _ in range(count)]


def _mean_logprob(probes: list[Probe]) -> float:
    return float(np.mean([probe.mean_logprob for probe in probes]))


def _crossing(doses: Sequence[float], values: Sequence[float], level: float) -> float:
    """The dose at which `values`, which start at 0, reach `level`, by linear interpolation.

    The last dose that has a value, if the values never reach `level`.
    """
    x, y = 0.0, 0.0
    for dose, value in zip(doses, values, strict=False):
        if value >= level:
            return x + (dose - x) * (level - y) / (value - y)
        x, y = dose, value
    return x

"""Measures once per model what steering needs: the norms of activations, and how much noise they bear."""

import math
from collections.abc import Generator, Sequence

import numpy as np

from inference.scheduling.probe import Work
from inference.scheduling.steering import BlockVectors, Steering
from inference.steering.directions import Calibration, unit_vectors
from inference.steering.measurements import ProbeFactory

_CAP_DOSES = (0.2, 0.3, 0.45, 0.675)
_CAP_PERPLEXITY_RATIO = 1.5


def calibrate(factory: ProbeFactory, block: int, seed: int = 0) -> Generator[Work, None, Calibration]:
    """Measures the mean norms of the decoder blocks' output, and the cap.

    The cap is the dose of a random direction, added to the output of `block`, at which the perplexity of the
    neutral texts rises to _CAP_PERPLEXITY_RATIO times. Uses only the neutral texts.
    """
    plain = factory.capture_neutral()
    yield plain.probes
    norms = np.mean([probe.mean_norm for probe in plain.neutral], axis=0)
    hidden_size = plain.neutral[0].mean_hidden.shape[1]
    vector = np.random.default_rng(seed).standard_normal((1, hidden_size)).astype(np.float32)
    unit = unit_vectors(vector) * np.float32(norms[block])
    costs: list[float] = []
    for dose in _CAP_DOSES:
        both = [Steering(BlockVectors((block,), np.float32(sign * dose) * unit)) for sign in (-1, 1)]
        steered = [factory.read_neutral(steering) for steering in both]
        yield steered[0].probes + steered[1].probes
        costs.append(max(plain.neutral_logprob - reading.neutral_logprob for reading in steered))
        if costs[-1] >= math.log(_CAP_PERPLEXITY_RATIO):
            break
    return Calibration(tuple(norms.tolist()), _crossing(_CAP_DOSES, costs, math.log(_CAP_PERPLEXITY_RATIO)))


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

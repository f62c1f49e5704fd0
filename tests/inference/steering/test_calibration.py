"""The norms of activations, and the noise that a model bears."""

import math

import numpy as np
import pytest

from inference.steering import calibration
from inference.steering.calibration import calibrate
from inference.steering.measurements import ProbeFactory
from tests.inference.steering.linear_model import NORMS, LinearModel, make_command


@pytest.mark.parametrize("cost", [1.0, 8.0, 200.0])
def test_the_cap_is_the_dose_at_which_a_random_direction_costs_too_much(cost: float) -> None:
    """The cap is interpolated linearly between the tried doses, although the model's cost is quadratic."""
    model = LinearModel(effect=0.0, cost=cost)
    measured = model.run(calibrate(ProbeFactory(make_command()), 6))
    assert measured.norms == pytest.approx(NORMS)
    doses = [0.0, *calibration._CAP_DOSES]
    costs = [cost * dose**2 for dose in doses]
    expected = float(np.interp(math.log(calibration._CAP_PERPLEXITY_RATIO), costs, doses))
    assert measured.cap == pytest.approx(expected, rel=1e-5)


def test_it_needs_no_pairs() -> None:
    measured = LinearModel(cost=1.0).run(calibrate(ProbeFactory(make_command(0)), 6))
    assert measured.norms == pytest.approx(NORMS)

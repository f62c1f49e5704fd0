"""Ablation and clamping set the components along all of a request's concepts, and change nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.interface.requests import SteeringMode, SteeringSpec
from inference.scheduling.steering import Steering
from tests.inference.steering.conftest import HIDDEN_SIZE, make_direction
from tests.inference.steering.test_steerer import BLOCKS, make_steerer, steer


def apply(steering: Steering, block: int, hidden: np.ndarray) -> np.ndarray:
    """What the steering makes of the output [hidden_size] of a decoder block."""
    changed = hidden.astype(np.float64)
    if steering.added is not None and block in steering.added.blocks:
        changed = changed + steering.added.vectors[steering.added.blocks.index(block)]
    for pair in steering.projections:
        if block in pair.read.blocks:
            number = pair.read.blocks.index(block)
            changed = changed + (pair.read.vectors[number] @ hidden) * pair.write.vectors[number]
    return changed


CHOICES = {
    "one": make_direction(11, blocks=(1,)),
    "other": make_direction(12, blocks=(0, 1), down_scale=0.5),
    "third": make_direction(13, blocks=(1, 2)),
}
STRENGTHS = st.dictionaries(
    st.sampled_from(sorted(CHOICES)), st.floats(-1.5, 1.5).filter(lambda x: abs(x) > 1e-3), min_size=1
)


def units_at(strengths: dict[str, float], block: int) -> dict[str, np.ndarray]:
    known = {name: CHOICES[name] for name in strengths if block in CHOICES[name].blocks}
    return {name: d.units[d.blocks.index(block)].astype(np.float64) for name, d in known.items()}


@given(strengths=STRENGTHS, seed=st.integers(0, 99), clamps=st.booleans())
@settings(deadline=None)
def test_projections_set_the_component_along_every_concept_and_leave_the_rest(
    strengths: dict[str, float], seed: int, clamps: bool
) -> None:
    """Although the directions are not orthogonal."""
    mode = SteeringMode.CLAMP if clamps else SteeringMode.ABLATE
    steered = make_steerer(1e9, CHOICES).steer(SteeringSpec(strengths, mode=mode), 1)
    used = {name: steered.clipped.get(name, strength) for name, strength in strengths.items()}
    if steered.steering is None:
        assert set(used.values()) == {0.0}
        return
    hidden = 10 * np.random.default_rng(seed).standard_normal(HIDDEN_SIZE)
    for block in steered.steering.blocks:
        units = {name: unit for name, unit in units_at(used, block).items() if used[name]}
        changed = apply(steered.steering, block, hidden)
        for name, unit in units.items():
            components = CHOICES[name].components(used[name])[CHOICES[name].blocks.index(block), 0]
            expected = components if clamps else (1 - used[name]) * (unit @ hidden)
            assert unit @ changed == pytest.approx(expected, abs=1e-3)
        basis, _ = np.linalg.qr(np.stack([*units.values()]).T)
        np.testing.assert_allclose(
            changed - basis @ (basis.T @ changed), hidden - basis @ (basis.T @ hidden), atol=1e-3
        )


@pytest.mark.parametrize("mode", [SteeringMode.ABLATE, SteeringMode.CLAMP])
def test_two_concepts_with_one_direction_can_be_projected_on(mode: SteeringMode) -> None:
    """Then no dual vectors exist. The component is still set, and nothing becomes large."""
    one = make_direction(1, blocks=BLOCKS)
    nearly = one.units + np.float32(1e-7) * make_direction(2, blocks=BLOCKS).units
    known = {"one": one, "same": one, "nearly": make_direction(1, blocks=BLOCKS, units=nearly)}
    steering = steer(make_steerer(1e9, known), *known, mode=mode).steering
    assert steering is not None
    hidden = np.random.default_rng(0).standard_normal(HIDDEN_SIZE)
    for number, block in enumerate(BLOCKS):
        changed = apply(steering, block, hidden)
        expected = 0.0 if mode is SteeringMode.ABLATE else one.lengths[number]
        assert one.units[number] @ changed == pytest.approx(expected, abs=1e-3)
        assert np.linalg.norm(changed - hidden) < 1.1 * (one.lengths[number] + np.linalg.norm(hidden))

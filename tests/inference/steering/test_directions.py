"""A direction: which values fit together, what a strength adds, and which strengths are used."""

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest

from inference.steering.directions import Direction, relative_dose, to_given_vectors, unit_vectors
from inference.steering.given import given_direction
from tests.given_vectors import added_by
from tests.inference.steering.conftest import HIDDEN_SIZE, NORMS, NUM_LAYERS, make_direction

BLOCKS = (0, 2)


def test_unit_vectors_have_unit_length_and_the_same_direction() -> None:
    rows = 7 * np.random.default_rng(0).standard_normal((3, HIDDEN_SIZE)).astype(np.float32)
    units = unit_vectors(rows)
    assert units.dtype == np.float32
    for unit, row in zip(units.astype(np.float64), rows.astype(np.float64), strict=True):
        assert np.linalg.norm(unit) == pytest.approx(1.0, rel=1e-6)
        assert np.dot(unit, row) == pytest.approx(np.linalg.norm(row), rel=1e-6)


def test_a_zero_row_gives_a_zero_row() -> None:
    rows = np.stack([np.zeros(HIDDEN_SIZE), np.ones(HIDDEN_SIZE)]).astype(np.float32)
    assert [row.any() for row in unit_vectors(rows)] == [False, True]


def test_a_tiny_row_gets_unit_length() -> None:
    [unit] = unit_vectors(np.full((1, HIDDEN_SIZE), 1e-30, np.float32))
    assert np.linalg.norm(unit) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(("strength", "scale"), [(1.0, 1.0), (2.0, 2.0), (-1.0, -0.25), (0.0, 0.0)])
def test_a_strength_scales_the_length_at_each_block(strength: float, scale: float) -> None:
    direction = make_direction(1, blocks=BLOCKS, lengths=(3.0, 0.5), down_scale=0.25)
    vectors = direction.vectors(strength)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, scale * np.array([[3.0], [0.5]]) * direction.units, rtol=1e-6)
    np.testing.assert_allclose(direction.components(strength), [[3.0 * scale], [0.5 * scale]])


@pytest.mark.parametrize(
    ("strength", "used"), [(0.7, 0.7), (1.5, 1.5), (1.6, 1.5), (1e30, 1.5), (-0.4, -0.4), (-0.6, -0.5)]
)
def test_strengths_are_clipped_to_the_maximum_of_their_sign(strength: float, used: float) -> None:
    assert make_direction(1, max_strength=1.5, max_down_strength=0.5).clip(strength) == used


def test_the_direction_to_read_is_that_of_the_block_to_read() -> None:
    direction = make_direction(1, blocks=(0, 1, 2), reading_block=1)
    assert np.array_equal(direction.reading_unit, direction.units[1:2])


def test_the_relative_dose_is_the_largest_of_all_blocks() -> None:
    direction = make_direction(1, blocks=BLOCKS, lengths=(3.0, 10.0), down_scale=0.5)
    assert relative_dose(direction, NORMS) == pytest.approx(10.0 / NORMS[2])
    assert relative_dose(direction, NORMS, -2.0) == pytest.approx(10.0 / NORMS[2])
    assert relative_dose(direction, (1.0, 20.0, 25.0)) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("blocks", "shape", "fits"),
    [
        ((0, 2), (3, HIDDEN_SIZE), True),
        ((0, 2), (4, HIDDEN_SIZE), True),
        ((0, 2), (2, HIDDEN_SIZE), False),
        ((0, 2), (3, HIDDEN_SIZE + 1), False),
        ((-1, 2), (3, HIDDEN_SIZE), False),
    ],
)
def test_a_direction_fits_a_model_that_has_its_blocks_and_hidden_size(
    blocks: tuple[int, ...], shape: tuple[int, int], fits: bool
) -> None:
    assert make_direction(1, blocks=blocks).fits(*shape) is fits


NAN, INFINITY = float("nan"), float("inf")
UNITS = make_direction(1, blocks=BLOCKS).units


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": UNITS * np.float32(NAN)}, "not finite"),
        ({"lengths": (1.0, INFINITY)}, "not finite"),
        ({"down_scale": NAN}, "not finite"),
        ({"max_strength": INFINITY}, "not finite"),
        ({"max_down_strength": NAN}, "not finite"),
        ({"reading_range": (0.0, NAN)}, "not finite"),
        ({"units": UNITS[0]}, "not a matrix"),
        ({"units": np.ones((), np.float32)}, "not a matrix"),
        ({"units": UNITS.astype(np.float64)}, "not a matrix of float32"),
        ({"units": UNITS[:1]}, "one vector and one length"),
        ({"lengths": (1.0,)}, "one vector and one length"),
        ({"blocks": (0, 1, 2)}, "one vector and one length"),
        ({"blocks": (), "units": UNITS[:0], "lengths": ()}, "one vector and one length"),
        ({"blocks": (2, 0)}, "not in order"),
        ({"blocks": (2, 2), "reading_block": 2}, "not in order"),
        ({"reading_block": 1}, "block to read is not among them"),
        ({"lengths": (1.0, -1.0)}, "negative length"),
        ({"down_scale": -0.5}, "negative length"),
        ({"max_down_strength": -1.0}, "negative length"),
        ({"reading_range": (2.0, 2.0)}, "empty range"),
        ({"reading_range": (2.0, 2.000001)}, "empty range"),
        ({"up_blocks": ()}, "a sign of the direction has no blocks"),
        ({"down_blocks": ()}, "a sign of the direction has no blocks"),
        ({"up_blocks": (0, 1)}, "has no blocks, or others"),
        ({"down_blocks": (7,)}, "has no blocks, or others"),
    ],
)
def test_values_that_do_not_fit_together_are_an_error(changes: Mapping[str, object], message: str) -> None:
    good = make_direction(1, blocks=BLOCKS)
    values = {name: getattr(good, name) for name in Direction.__dataclass_fields__}
    Direction(**values)
    with pytest.raises(ValueError, match=message):
        Direction(**{**values, **changes})


def test_a_direction_leaves_the_process_as_what_strength_one_adds() -> None:
    direction = make_direction(
        1, 0.3, BLOCKS, down_scale=0.5, max_strength=1.5, max_down_strength=1.25, reading_block=2
    )
    given = to_given_vectors(direction)
    assert given.blocks == BLOCKS
    np.testing.assert_array_equal(added_by(given), direction.vectors(1.0))
    assert (given.down_scale, given.max_strength, given.max_down_strength) == (0.5, 1.5, 1.25)
    assert (given.reading_block, given.reading_range) == (2, direction.reading_range)
    assert given.pairs_digest == ""
    assert given.up_blocks is given.down_blocks is None
    assert direction.fits(NUM_LAYERS, HIDDEN_SIZE)


def test_a_direction_whose_signs_steer_different_blocks_leaves_with_all_its_vectors() -> None:
    direction = make_direction(1, 0.3, (0, 1, 2), down_scale=0.5, up_blocks=(0, 1), down_blocks=(1, 2))
    given = to_given_vectors(direction)
    values = added_by(given)
    np.testing.assert_array_equal(values[:2], direction.vectors(1.0)[:2])
    np.testing.assert_allclose(-0.5 * values[1:], direction.vectors(-1.0)[1:], rtol=1e-6)
    assert (given.up_blocks, given.down_blocks) == ((0, 1), (1, 2))


@pytest.mark.parametrize(("strength", "steered"), [(1.0, (0, 1)), (-1.0, (1, 2))])
def test_a_sign_changes_only_its_own_blocks(strength: float, steered: tuple[int, ...]) -> None:
    direction = make_direction(1, 0.3, (0, 1, 2), up_blocks=(0, 1), down_blocks=(1, 2))
    assert direction.steered(strength) == steered
    changed = np.flatnonzero(np.linalg.norm(direction.vectors(strength), axis=1))
    assert tuple(changed) == steered
    assert relative_dose(direction, NORMS, strength) == pytest.approx(0.3)


def test_a_direction_that_leaves_the_process_comes_back_bit_for_bit() -> None:
    direction = make_direction(1, 0.3, BLOCKS, down_scale=0.5, max_strength=1.5, reading_block=2)
    examples = SimpleNamespace(norms=NORMS, hidden_size=HIDDEN_SIZE)
    again = given_direction(to_given_vectors(direction), examples)
    np.testing.assert_array_equal(again.units, direction.units)
    for name in Direction.__dataclass_fields__.keys() - {"units"}:
        assert getattr(again, name) == getattr(direction, name), name

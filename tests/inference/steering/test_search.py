"""Which decoder blocks are tried, and which of them is chosen."""

import pytest

from inference.interface.config import ConfigError
from inference.steering.measurements import Examples, ProbeFactory
from inference.steering.search import Finalist, candidates, search
from tests.inference.steering.linear_model import NORMS, LinearModel, make_command


def test_the_candidates_are_single_blocks_a_middle_group_and_a_late_one() -> None:
    middle, late = tuple(range(11, 24)), (19, 21, 23, 25, 27)
    assert candidates(30, None) == [(18,), (15,), (21,), (24,), middle, late]
    middle, late = (*range(12, 24), 25), (20, 22, 25, 27, 29)
    assert candidates(32, None) == [(19,), (16,), (22,), (26,), middle, late]


@pytest.mark.parametrize("num_layers", [3, 12, 16, 18, 22, 30, 80])
def test_the_group_leaves_out_the_last_block(num_layers: int) -> None:
    """Its output goes into the head."""
    groups = [blocks for blocks in candidates(num_layers, None) if len(blocks) > 1]
    assert all(max(blocks) < num_layers - 1 for blocks in groups)
    assert groups or num_layers == 3


@pytest.mark.parametrize("num_layers", range(1, 9))
def test_small_models_have_distinct_candidates(num_layers: int) -> None:
    sets = candidates(num_layers, None)
    assert len(set(sets)) == len(sets)
    assert all(0 <= block < num_layers for blocks in sets for block in blocks)
    assert all(list(blocks) == sorted(set(blocks)) for blocks in sets)


def test_configured_blocks_are_the_only_candidate() -> None:
    assert candidates(30, (20, 3)) == [(3, 20)]


@pytest.mark.parametrize("blocks", [(3,), (-1,), (0, 7)])
def test_a_block_that_the_model_does_not_have_is_refused(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="the model has decoder blocks 0 to 2"):
        candidates(3, blocks)


def find(model: LinearModel, sets: list[tuple[int, ...]], count: int = 24) -> list[Finalist]:
    factory = ProbeFactory(make_command(count))
    plain = factory.capture()
    model.compute_all(plain.probes)
    return model.run(search(Examples(factory, plain, NORMS), sets))


@pytest.mark.parametrize("best", [5, 6, 7])
def test_the_block_with_the_largest_effect_at_equal_cost_is_chosen(best: int) -> None:
    model = LinearModel(cost=4.0, best_block=best)
    [finalist] = find(model, [(6,), (5,), (7,)])
    assert finalist.directions.full.blocks == (best,)
    assert finalist.dose == pytest.approx((0.3 / 4.0) ** 0.5, rel=0.05)
    down, up = finalist.shift_per_dose
    assert up == pytest.approx(-down, rel=0.05)
    assert up > 0


def test_equal_candidates_leave_the_default() -> None:
    [finalist] = find(LinearModel(cost=4.0), [(6,), (5,), (7,)])
    assert finalist.directions.full.blocks == (6,)


def test_a_single_pair_leaves_the_default() -> None:
    """One pair has no standard error, so nothing is clearly better."""
    [finalist] = find(LinearModel(cost=4.0, best_block=5), [(6,), (5,)], 1)
    assert finalist.directions.full.blocks == (6,)


def test_the_dose_is_bounded_if_steering_costs_nothing() -> None:
    [finalist] = find(LinearModel(), [(6,)])
    assert finalist.dose == pytest.approx(0.5)


def test_a_single_block_that_is_not_clearly_better_than_a_group_is_left_out() -> None:
    finalists = find(LinearModel(cost=4.0, best_block=5), [(6,), (5,), (6, 7), (5, 6, 7)])
    assert [one.directions.full.blocks for one in finalists] == [(6, 7), (5, 6, 7)]


def test_a_clearly_better_single_block_goes_on_beside_the_group() -> None:
    finalists = find(LinearModel(cost=4.0, best_block=5), [(6,), (5,), (7, 8)])
    assert [one.directions.full.blocks for one in finalists] == [(5,), (7, 8)]


def test_configured_blocks_need_no_single_one() -> None:
    finalists = find(LinearModel(cost=4.0), [(3, 6)])
    assert [one.directions.full.blocks for one in finalists] == [(3, 6)]

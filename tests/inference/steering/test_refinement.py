"""Refined directions make positive texts more likely than negative ones, at the strengths of both signs."""

import numpy as np
import pytest
import torch

from inference.scheduling.probe import Derivative
from inference.scheduling.steering import BlockVectors
from inference.steering import refinement
from inference.steering.adam import Adam
from inference.steering.directions import Calibration, Direction
from inference.steering.measurements import Examples, HeldOutDirections, ProbeFactory
from inference.steering.refinement import _Texts, estimate_tokens, refine
from inference.steering.search import RefinedBlocks, candidates, refined_blocks
from inference.steering.training import train
from tests.inference.steering.linear_model import (
    NEUTRAL,
    NORMS,
    NUM_LAYERS,
    POSITIVE,
    PROMPT,
    LinearModel,
    make_command,
)

BLOCKS = RefinedBlocks((2, 4, 6), 5)


def capture(model: LinearModel, folds: int = 2, **options: object) -> Examples:
    factory = ProbeFactory(make_command(**options))
    plain = factory.capture()
    model.compute_all(plain.probes)
    return Examples(factory, plain, NORMS, folds)


def refined(model: LinearModel, examples: Examples) -> tuple[HeldOutDirections, float]:
    return model.run(refine(examples, BLOCKS))


def loss(model: LinearModel, examples: Examples, vectors: np.ndarray) -> float:
    """The mean of -log sigmoid(m) over all pairs, at strength -1 and at 1, added."""
    texts = _Texts(examples)
    total = 0.0
    for strength in (-1.0, 1.0):
        added = BlockVectors(BLOCKS.steered, (strength * vectors).astype(np.float32))
        derivatives = texts.differentiate(texts.pairs, added)
        model.compute_all(derivatives)
        logprobs = np.concatenate([one.logprobs for one in derivatives])
        odds = logprobs[0::2] - logprobs[1::2] - texts.log_odds
        total += float(np.log1p(np.exp(-strength * odds)) @ examples.weights)
    return total


def vectors_of(direction: Direction, dose: float) -> np.ndarray:
    """What the refinement has found, without the block that is read."""
    steered = np.isin(direction.blocks, direction.steered(1.0))
    return dose * direction.vectors(1.0)[steered]


def test_adam_is_that_of_torch() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal((3, 4))
    parameter = torch.nn.Parameter(torch.from_numpy(numbers.copy()))
    reference = torch.optim.Adam([parameter], lr=0.02, betas=(0.9, 0.95), eps=1e-8)
    adam = Adam(numbers.shape, 0.02)
    for _ in range(12):
        gradient = rng.standard_normal(numbers.shape) ** 3
        parameter.grad = torch.from_numpy(gradient)
        reference.step()
        numbers += adam.step(gradient)
    np.testing.assert_allclose(numbers, parameter.detach().numpy(), rtol=1e-9)


def test_the_loss_falls() -> None:
    model = LinearModel(effect=10.0)
    examples = capture(model, count=24)
    directions, dose = refined(model, examples)
    start = 0.03 * examples.direction(BLOCKS.steered).vectors(1.0)
    assert loss(model, examples, vectors_of(directions.full, dose)) < 0.9 * loss(model, examples, start)


@pytest.mark.parametrize("groups", [[], [0, 1, 1, 1, 2, 3]])
def test_the_gradient_is_that_of_the_loss(monkeypatch: pytest.MonkeyPatch, groups: list[int]) -> None:
    """Compared with finite differences, in which each group of pairs counts once."""
    gradients: list[np.ndarray] = []

    def step(adam: Adam, gradient: np.ndarray) -> np.ndarray:
        gradients.append(gradient)
        return np.zeros_like(gradient)

    monkeypatch.setattr(Adam, "step", step)
    monkeypatch.setattr(refinement, "_PART", 1)  # each step takes all pairs
    model = LinearModel(effect=200.0, cost=1.0)
    examples = capture(model, 1, count=6, groups=groups)
    refined(model, examples)
    start = 0.03 * examples.direction(BLOCKS.steered).vectors(1.0).astype(np.float64)
    rng = np.random.default_rng(0)
    for gradient in gradients[:3]:
        change = 1e-3 * rng.standard_normal(start.shape)
        scaled = np.array(NORMS)[list(BLOCKS.steered), None] * change
        slope = (loss(model, examples, start + scaled) - loss(model, examples, start - scaled)) / 2
        assert (gradient * change).sum() == pytest.approx(slope, rel=1e-3)


def test_the_first_step_has_the_given_length() -> None:
    model = LinearModel(effect=10.0)
    examples = capture(model)
    work = refine(examples, BLOCKS)
    before, after = [], []
    for found in (before, after):
        found += [each for each in next(work) if isinstance(each, Derivative)]
        model.compute_all(found)
    moved = (after[0].added.vectors - before[0].added.vectors) / np.array(NORMS)[list(BLOCKS.steered), None]
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 0.0072, rtol=1e-2)


def test_the_mean_difference_is_read_and_not_added() -> None:
    model = LinearModel()
    examples = capture(model)
    directions, _ = refined(model, examples)
    for direction in (directions.full, *directions.by_fold):
        assert (direction.blocks, direction.reading_block) == ((2, 4, 5, 6), 5)
        assert direction.steered(1.0) == direction.steered(-1.0) == (2, 4, 6)
        assert not direction.vectors(1.0)[2].any()
    plain = examples.direction((5,))
    np.testing.assert_array_equal(directions.full.reading_unit, plain.reading_unit)
    assert directions.full.reading_range == plain.reading_range


def test_the_dose_is_the_mean_norm_over_the_blocks() -> None:
    directions, dose = refined(model := LinearModel(), capture(model))
    shares = np.linalg.norm(directions.full.vectors(1.0), axis=1)[[0, 1, 3]] / np.array(NORMS)[[2, 4, 6]]
    assert shares.mean() == pytest.approx(1.0)
    assert 0.01 < dose < 0.2


def test_a_fold_does_not_see_its_own_pairs() -> None:
    """If they change, its direction does not."""
    command = make_command(8)
    changed = [[150] * 5 if pair % 2 else text for pair, text in enumerate(command.positive)]
    found = []
    for positive in (command.positive, changed):
        model = LinearModel()
        directions, _ = refined(model, capture(model, count=8, positive=positive))
        assert directions.folds == [0, 1] * 4
        found.append(directions)
    without_odd = [directions.by_fold[1].units for directions in found]
    np.testing.assert_array_equal(*without_odd)
    assert not np.allclose(found[0].by_fold[0].units, found[1].by_fold[0].units)


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_any_number_of_pairs_is_enough(count: int) -> None:
    model = LinearModel()
    directions, dose = refined(model, capture(model, count=count))
    assert dose > 0
    assert np.isfinite(directions.full.units).all()
    largest = max(one.num_tokens for work in model.rounds for one in work)
    assert largest <= 256  # so that requests do not wait long


def test_long_texts_count_with_their_first_tokens_and_are_computed_alone() -> None:
    """What comes later does not matter."""
    odds = []
    for last in (POSITIVE, NEUTRAL):
        model, command = LinearModel(), make_command(4)
        positive = [list(text[:1]) * 256 + [last[0]] * 100 for text in command.positive]
        examples = capture(model, 1, count=4, positive=positive)
        work = refine(examples, BLOCKS)
        derivatives = next(work)
        assert max(one.num_tokens for one in derivatives) == 256 + len(PROMPT)
        assert all(len(one.texts) == 1 or one.num_tokens <= 256 for one in derivatives)
        model.compute_all(derivatives)
        odds.append(_Texts(examples).log_odds)
    np.testing.assert_array_equal(*odds)


def test_pairs_with_a_long_prompt_do_not_count() -> None:
    model = LinearModel()
    prompts = [[1] * 257, [1] * 256, [1] * 300, [1] * 3]
    examples = capture(model, 1, count=4, pair_prompts=prompts)
    refined(model, examples)
    seen = {len(prompt) for work in model.rounds for one in work for prompt, _ in one.texts}
    assert seen == {3, 256}


def test_without_a_pair_that_counts_the_mean_differences_stay() -> None:
    model = LinearModel()
    examples = capture(model, 1, count=4, pair_prompts=[[1] * 257] * 4)
    directions, dose = refined(model, examples)
    assert dose == pytest.approx(0.03)
    np.testing.assert_allclose(
        directions.full.units, examples.direction((2, 4, 5, 6)).units, rtol=1e-5, atol=1e-7
    )


def test_a_pair_that_is_decided_beyond_all_numbers_has_no_weight() -> None:
    model = LinearModel(effect=1e6)
    directions, _ = refined(model, capture(model))
    assert np.isfinite(directions.full.units).all()


def test_the_estimate_of_tokens_is_about_right() -> None:
    model = LinearModel()
    for count in (8, 24, 100):
        model.rounds.clear()
        refined(model, capture(model, count=count))
        computed = sum(one.num_tokens for work in model.rounds for one in work)
        assert estimate_tokens(make_command(count), 2) == pytest.approx(computed, rel=0.1)


@pytest.mark.parametrize("num_layers", range(2, 60))
def test_another_block_than_the_steered_ones_is_read(num_layers: int) -> None:
    blocks = refined_blocks(candidates(num_layers, None), num_layers)
    assert blocks is not None
    assert blocks.read not in blocks.steered
    assert 0 <= blocks.read < num_layers
    assert blocks.steered
    if num_layers == 30:
        assert blocks == ((11, 13, 15, 17, 19, 21, 23), 18)


def test_configured_blocks_are_refined() -> None:
    assert refined_blocks(candidates(30, (20,)), 30) == ((20,), 21)
    assert refined_blocks(candidates(3, (0, 1, 2)), 3) is None
    assert refined_blocks(candidates(1, None), 1) is None


def test_a_training_with_refined_directions_works() -> None:
    published: list[Direction] = []
    model = LinearModel(effect=10.0, cost=0.5)
    work = train(
        make_command(24),
        Calibration(NORMS, 0.6),
        candidates(NUM_LAYERS, None),
        500,
        published.append,
        BLOCKS,
    )
    report = model.run(work)
    assert report.works is True, report.summary
    assert report.blocks == list(BLOCKS.steered)
    assert report.num_held_out == 16
    assert published[0].reading_block == BLOCKS.read

"""What training asks for and what it makes of the results, with a linear model: no engine, no torch."""

import random
from collections.abc import Generator
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from inference.interface.concepts import ConceptReport, GivenVectors, TrainConcept
from inference.scheduling.probe import Probe, Work
from inference.steering import training
from inference.steering.answers import AnswerSheet
from inference.steering.directions import Calibration, Direction
from inference.steering.limits import TunedDose
from inference.steering.measurements import Examples
from inference.steering.search import Finalist, RefinedBlocks, candidates
from inference.steering.training import UntrainableError, estimate_tokens, train
from tests.inference.steering.linear_model import (
    HIDDEN_SIZE,
    NORMS,
    NUM_LAYERS,
    LinearModel,
    make_command,
)

BLOCKS = candidates(NUM_LAYERS, None)
REFINED = RefinedBlocks((1, 2, 3), 0)
Tuning = Generator[Work, None, list[TunedDose]]


def run(
    model: LinearModel,
    command: TrainConcept,
    blocks: tuple[int, ...] | None = None,
    refined: RefinedBlocks | None = None,
) -> tuple[Direction, ConceptReport]:
    published: list[Direction] = []
    sets = candidates(NUM_LAYERS, blocks)
    work = train(command, Calibration(NORMS, 0.6), sets, 500, published.append, refined)
    report = model.run(work)
    [direction] = published
    return direction, report


def test_the_direction_is_the_mean_difference() -> None:
    model, command = LinearModel(), make_command()
    direction, _ = run(model, command, (2, 5))
    pairs = zip(command.positive, command.negative, strict=True)
    expected = np.mean([model.embed(p).mean(0) - model.embed(n).mean(0) for p, n in pairs], axis=0)
    expected /= np.linalg.norm(expected)
    assert direction.blocks == (2, 5)
    np.testing.assert_allclose(direction.units, np.tile(expected, (2, 1)), rtol=1e-5, atol=1e-6)


def test_each_group_of_pairs_counts_once() -> None:
    model, command = LinearModel(), make_command(4, groups=[0, 1, 1, 1])
    direction, _ = run(model, command, (2,))
    pairs = zip(command.positive, command.negative, strict=True)
    differences = np.array([model.embed(p).mean(0) - model.embed(n).mean(0) for p, n in pairs])
    expected = (differences[0] + differences[1:].mean(0)) / 2
    np.testing.assert_allclose(direction.units[0], expected / np.linalg.norm(expected), rtol=1e-5, atol=1e-6)


def test_the_readings_are_zero_and_one_at_the_examples_means() -> None:
    model, command = LinearModel(), make_command()
    direction, _ = run(model, command, (2,))
    for side, expected in zip((command.negative, command.positive), direction.reading_range, strict=True):
        projections = [model.embed(text).mean(0) @ direction.units[0] for text in side]
        assert np.mean(projections) == pytest.approx(expected, rel=1e-5)


def test_a_concept_with_effect_works() -> None:
    direction, report = run(LinearModel(effect=10.0), make_command(24))
    assert report.works is True, report.summary
    assert report.summary.startswith("The concept works.")
    assert (report.num_examples, report.num_distinct, report.num_groups, report.num_held_out) == (
        24,
        24,
        24,
        16,
    )
    assert [answer.strength for answer in report.answers] == [-1, 0, 1]
    assert max(answer.moved for answer in report.answers) >= 0.35
    assert report.blocks == list(direction.blocks)
    assert len(report.samples) == 6


def test_the_block_with_the_larger_effect_is_chosen() -> None:
    for best in (5, 7):
        direction, _ = run(LinearModel(cost=1.0, best_block=best), make_command(24))
        assert best in direction.blocks


def test_without_a_difference_the_default_block_is_chosen() -> None:
    sets = [(6,), (5,), (7,), (8,)]
    published: list[Direction] = []
    LinearModel(cost=1.0).run(train(make_command(24), Calibration(NORMS, 0.6), sets, 500, published.append))
    assert published[0].blocks == (6,)


def test_refined_directions_are_kept_if_they_move_answers() -> None:
    _, report = run(LinearModel(), make_command(24), refined=REFINED)
    assert report.blocks == list(REFINED.steered)
    assert not any("refine" in warning for warning in report.warnings)


def test_refined_directions_that_move_too_few_answers_are_not_used() -> None:
    model = LinearModel(deaf_blocks=REFINED.steered)
    _, expected = run(model, make_command(24))
    direction, report = run(model, make_command(24), refined=REFINED)
    assert REFINED.read not in direction.blocks
    warning = "its direction was not refined: with refinement, strength -1 would change too few answers"
    assert warning in report.warnings
    warnings = [one for one in report.warnings if one != warning]
    assert msgspec.structs.replace(report, warnings=warnings) == expected


def test_refined_directions_that_are_not_fluent_at_smaller_strengths_are_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tune = training.tune

    def find_rough(examples: Examples, finalists: list[Finalist], sheet: AnswerSheet) -> Tuning:
        tuned = yield from tune(examples, finalists, sheet)
        return [replace(one, rough=finalists[0].learned_dose is not None) for one in tuned]

    _, expected = run(LinearModel(), make_command(24))
    monkeypatch.setattr(training, "tune", find_rough)
    _, report = run(LinearModel(), make_command(24), refined=REFINED)
    assert report.blocks == expected.blocks
    warning = (
        "its direction was not refined: with refinement, answers would be fluent at strength 1, but not at "
        "smaller ones"
    )
    assert warning in report.warnings


def test_refined_directions_are_kept_if_the_mean_differences_move_too_few_answers_as_well() -> None:
    _, report = run(LinearModel(deaf_blocks=tuple(range(NUM_LAYERS))), make_command(24), refined=REFINED)
    assert report.blocks == list(REFINED.steered)
    assert report.works is False


@pytest.mark.parametrize("seed", range(3))
def test_strengths_of_looping_answers_are_not_allowed(seed: int) -> None:
    limit = 0.2 + 0.1 * seed
    direction, report = run(LinearModel(effect=8.0, loops_from=limit), make_command(24), (6,))
    assert report.dose < limit
    assert report.dose * report.max_strength < limit
    assert report.down_dose * report.max_down_strength < limit
    assert direction.max_strength == report.max_strength


def test_a_concept_whose_pairs_disagree_does_not_work() -> None:
    _, report = run(LinearModel(), make_command(24, mixes=True))
    assert report.works is False
    assert report.agreement is not None
    assert report.agreement < 0.15


def test_a_model_without_any_effect_does_not_work() -> None:
    _, report = run(LinearModel(effect=0.0), make_command())
    assert report.works is False
    assert report.specificity is None


def test_a_random_direction_has_far_less_effect() -> None:
    """In 64 dimensions, the cosine of two random directions is about an eighth."""
    _, report = run(LinearModel(), make_command(24))
    assert report.specificity is not None
    assert report.specificity > 3
    assert report.specificity_error is not None
    assert 0 < report.specificity_error < report.specificity / 3


@pytest.mark.parametrize("count", [2, 3, 5, 8, 18])
def test_no_pair_is_measured_with_a_direction_made_from_its_group(count: int) -> None:
    """Each pair has one token that no other pair has, and each token has its own dimension."""
    command = make_command(count, groups=[pair // 2 for pair in range(count)])
    for pair in range(count):
        command.positive[pair].append(20 + pair)
    model = LinearModel()
    model.embeddings = np.eye(200, HIDDEN_SIZE)
    _, report = run(model, command, (2,))
    pairs = {
        tuple(text): pair for side in (command.positive, command.negative) for pair, text in enumerate(side)
    }
    measured = set()
    for probe in (probe for work in model.rounds for probe in work if isinstance(probe, Probe)):
        pair = pairs.get(tuple(probe.content_token_ids))
        if pair is None or probe.steering is None:
            continue
        own = probe.steering.added.vectors[0, 20 : 20 + count]
        if np.count_nonzero(own) == count and len(np.unique(np.abs(own))) > count // 2:
            continue  # a random direction
        group = [other for other in range(count) if other // 2 == pair // 2]
        assert not own[group].any()
        measured.add(pair)
    assert report.num_held_out == (min(count, 16) if count > 2 else 0)
    assert len(measured) == report.num_held_out


@pytest.mark.parametrize("command", [make_command(1), make_command(6, groups=[0] * 6)], ids=["one", "alike"])
def test_a_single_group_gives_a_direction_but_no_verdict(command: TrainConcept) -> None:
    direction, report = run(LinearModel(), command)
    assert report.works is None
    assert (report.num_held_out, report.effects, report.num_groups) == (0, [], 1)
    assert report.summary.startswith("It cannot be told whether the concept works")
    assert len(report.answers) == 3
    assert direction.lengths[0] > 0


def test_few_groups_give_no_verdict_however_many_pairs_there_are() -> None:
    _, report = run(LinearModel(effect=8.0), make_command(24, groups=[pair % 7 for pair in range(24)]))
    assert report.works is None
    assert "too few different examples" in report.summary
    assert any("count as 7 only" in warning for warning in report.warnings)


def test_duplicates_are_reported() -> None:
    _, report = run(LinearModel(), make_command(9, num_duplicates=3))
    assert (report.num_examples, report.num_distinct) == (12, 9)
    assert any("3 of the examples are exact duplicates" in warning for warning in report.warnings)


def test_without_questions_there_are_no_answers() -> None:
    direction, report = run(LinearModel(effect=8.0, cost=0.2), make_command(24, questions=[]))
    assert (report.answers, report.samples) == ([], [])
    assert report.works is True, report.summary
    assert direction.lengths[0] > 0


def test_a_question_that_leaves_no_room_is_left_out() -> None:
    command = make_command(12, questions=[[5] * 500, [3, 4, 5]])
    _, report = run(LinearModel(), command)
    assert {sample.question for sample in report.samples} == {1}


def test_positive_equal_to_negative_is_untrainable() -> None:
    command = make_command()
    same = msgspec.structs.replace(command, negative=command.positive)
    with pytest.raises(UntrainableError, match="are the same for the positive and the negative examples"):
        run(LinearModel(), same)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_infinite_activations_are_untrainable() -> None:
    class Broken(LinearModel):
        def compute(self, probe: Probe) -> None:
            super().compute(probe)
            probe.hidden_sum[:] = np.inf if probe.content_token_ids[0] < 40 else 0.0

    with pytest.raises(UntrainableError, match="not finite"):
        run(Broken(), make_command())


def test_the_direction_is_published_before_its_effects_are_measured() -> None:
    published: list[Direction] = []
    model = LinearModel()
    work = train(make_command(), Calibration(NORMS, 0.6), BLOCKS, 500, published.append)
    rounds_after = 0
    for round_of_work in work:
        model.compute_all(round_of_work)
        rounds_after += bool(published)
    assert rounds_after >= 2  # effects and specificity


@pytest.mark.parametrize("count", [2, 12, 40])
def test_the_estimate_is_close_to_the_number_of_tokens(count: int) -> None:
    model, command = LinearModel(), make_command(count)
    run(model, command)
    used = sum(item.num_tokens for work in model.rounds for item in work)
    assert 0.4 * used < estimate_tokens(command) < 2.5 * used


# ---- given vectors ----


def given(blocks: tuple[int, ...] = (2, 4), seed: int = 5, **changes: object) -> GivenVectors:
    values = np.random.default_rng(seed).standard_normal((len(blocks), HIDDEN_SIZE)).astype("<f4")
    return GivenVectors(**{"blocks": blocks, "values": values.tobytes(), **changes})


def test_given_vectors_keep_their_own_scale() -> None:
    vectors = given(down_scale=0.5, max_strength=1.5)
    command = make_command(0, vectors=vectors)
    direction, report = run(LinearModel(), command)
    expected = np.frombuffer(vectors.values, "<f4").reshape(2, HIDDEN_SIZE)
    np.testing.assert_allclose(direction.vectors(1.0), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(direction.vectors(-1.0), -0.5 * expected, rtol=1e-5, atol=1e-6)
    assert (direction.max_strength, direction.max_down_strength) == (1.5, 2.0)
    assert report.works is None
    assert report.summary.startswith("The vectors were not measured, because no examples came with them.")
    assert (report.effects, report.num_examples) == ([], 0)
    assert len(report.answers) == 3
    assert "visibly changes" not in report.summary  # there are no examples that answers could be like
    assert report.warnings == []


def test_given_vectors_whose_answers_loop_have_a_warning() -> None:
    model = LinearModel(loops_from=0.5)
    _, report = run(model, make_command(0, vectors=given()))
    assert report.warnings == [f"answers at strength {sign} are not fluent" for sign in (1, -1)]


def test_without_pairs_a_reading_of_one_is_what_strength_one_adds_to_neutral_texts() -> None:
    model, command = LinearModel(), make_command(0, vectors=given((3,)))
    direction, _ = run(model, command)
    neutral = np.mean([model.embed(text).mean(0) @ direction.units[0] for text in command.neutral])
    assert direction.reading_range == pytest.approx((neutral, neutral + direction.lengths[0]), rel=1e-5)


def test_given_vectors_are_measured_on_the_pairs_that_come_with_them() -> None:
    plain = make_command(12)
    trained, _ = run(LinearModel(effect=8.0), plain, (6,))
    vectors = GivenVectors((6,), trained.vectors(1.0).astype("<f4").tobytes())
    direction, report = run(LinearModel(effect=8.0), msgspec.structs.replace(plain, vectors=vectors))
    assert report.works is not None
    assert report.effects[-1].shift > 0.2
    assert report.num_held_out == 12
    assert direction.reading_range == pytest.approx(trained.reading_range, rel=1e-4)


def test_a_given_range_of_readings_is_kept() -> None:
    vectors = given((3, 5), reading_block=5, reading_range=(2.0, -1.0))
    direction, _ = run(LinearModel(), make_command(4, vectors=vectors))
    assert (direction.reading_block, direction.reading_range) == (5, (2.0, -1.0))


BAD_VECTORS = {
    "too few numbers": given(values=b"\0" * 4 * HIDDEN_SIZE),
    "not whole numbers": given(values=b"\0" * 7),
    "no blocks": given(blocks=(), values=b""),
    "beyond the model": given((2, NUM_LAYERS)),
    "below the model": given((-1, 2)),
    "not ascending": given((4, 2)),
    "twice the same": given((2, 2)),
    "not finite": given((2,), values=np.full(HIDDEN_SIZE, np.nan, "<f4").tobytes()),
    "overflow": given((2,), values=np.full(HIDDEN_SIZE, np.inf, "<f4").tobytes()),
    "zero": given((2,), values=np.zeros(HIDDEN_SIZE, "<f4").tobytes()),
    "a block to read that is not given": given(reading_block=3),
    "an empty range": given(reading_range=(1.0, 1.0)),
    "a range that is not finite": given(reading_range=(0.0, float("nan"))),
    "a negative maximum": given(max_strength=-1.0),
    "a scale that is not finite": given(down_scale=float("inf")),
    "an overflow at the largest strength": given((2,), values=np.full(HIDDEN_SIZE, 3e38, "<f4").tobytes()),
    "an overflow at the largest negative strength": given(down_scale=1e300),
    "a range that is only rounding": given(reading_range=(1000.0, 1000.0001)),
}


@pytest.mark.parametrize("case", BAD_VECTORS)
def test_vectors_that_cannot_be_used_are_refused(case: str) -> None:
    with pytest.raises(UntrainableError):
        run(LinearModel(), make_command(0, vectors=BAD_VECTORS[case]))


def test_the_order_of_rounds_depends_on_nothing_but_the_command() -> None:
    """Two trainings of the same command give the same report to the last bit."""
    random.seed(1)
    first = run(LinearModel(effect=8.0, cost=1.0), make_command(24))
    random.seed(2)
    second = run(LinearModel(effect=8.0, cost=1.0), make_command(24))
    assert first[1] == second[1]
    assert first[0].lengths == second[0].lengths


def test_pairs_that_swap_each_others_texts_are_untrainable() -> None:
    """Without the third pair, the mean difference is zero."""
    command = make_command(3, groups=[0, 0, 1])
    command.positive[1], command.negative[1] = command.negative[0], command.positive[0]
    with pytest.raises(UntrainableError, match="do some examples swap the texts of others"):
        run(LinearModel(), command)


def test_numbers_of_groups_need_not_be_small() -> None:
    few = run(LinearModel(), make_command(4, groups=[0, 1, 2, 3]))
    huge = run(LinearModel(), make_command(4, groups=[0, 1, 2, 2**40]))
    assert few[1] == huge[1]


def test_measurements_of_given_vectors_respect_their_largest_strength() -> None:
    vectors = given(max_strength=0.5, max_down_strength=0.5)
    _, report = run(LinearModel(effect=8.0), make_command(12, vectors=vectors))
    assert report.effects[0].shift == pytest.approx(report.effects[1].shift)
    assert report.effects[3].shift == pytest.approx(report.effects[4].shift)
    assert "On the examples that came with the vectors" in report.summary

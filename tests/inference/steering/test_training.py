"""The probes that training yields and the results it computes, with a linear model: no engine, no torch."""

import math
from collections.abc import Generator
from itertools import permutations
from typing import TypeVar

import numpy as np
import pytest

from inference.interface.protocol import ConceptReport, TrainConcept
from inference.scheduling.probe import Probe
from inference.steering import training
from inference.steering.directions import Calibration, Direction
from inference.steering.measurements import ProbeFactory
from inference.steering.training import (
    STRENGTHS,
    UntrainableError,
    calibrate,
    estimate_tokens,
    train,
)
from tests.inference.steering.conftest import make_texts

NUM_LAYERS, HIDDEN_SIZE = 4, 64
BLOCKS = (1, 2)
NORMS = (1.0, 2.0, 3.0, 4.0)
PROMPT = [1, 2]
T = TypeVar("T")


class LinearModel:
    """A token's hidden states are its embedding. Vectors make tokens with similar embeddings more likely.

    `cost`: every token's log probability falls by this, times the square of the norm that steering adds.
    """

    def __init__(self, effect: float = 4.0, cost: float = 0.0) -> None:
        self.embeddings = np.random.default_rng(0).standard_normal((200, HIDDEN_SIZE))
        self._effect, self._cost = effect, cost
        self.rounds: list[list[Probe]] = []

    def embed(self, text: list[int]) -> np.ndarray:
        return self.embeddings[text]

    def compute(self, probe: Probe) -> None:
        content = self.embed(probe.content_token_ids)
        probe.logprobs[:] = -np.linalg.norm(content, axis=1)
        if probe.captures:
            probe.clear(NUM_LAYERS, HIDDEN_SIZE)
            probe.hidden_sum += content.sum(0)
            probe.norm_sum += np.array(NORMS) * len(content)
        if probe.vectors is not None:
            relative = probe.vectors / np.array(NORMS)[list(BLOCKS), None]
            probe.logprobs += self._effect * content @ relative.mean(0) / HIDDEN_SIZE
            probe.logprobs -= self._cost * np.square(relative).sum() / len(BLOCKS)

    def run(self, work: Generator[list[Probe], None, T]) -> T:
        while True:
            try:
                self.rounds.append(next(work))
            except StopIteration as end:
                return end.value
            for probe in self.rounds[-1]:
                self.compute(probe)


def make_command(count: int = 12, *, mixes: bool = False) -> TrainConcept:
    """Positive and negative texts use different tokens. `mixes`: every second pair is swapped."""
    positive, negative = make_texts(1, count, range(10, 14)), make_texts(2, count, range(40, 44))
    if mixes:
        for i in range(0, count, 2):
            positive[i], negative[i] = negative[i], positive[i]
    return TrainConcept("kind", PROMPT, positive, negative, make_texts(3, 5, range(100, 200)))


def pairs_by_text(command: TrainConcept) -> dict[tuple[int, ...], int]:
    """The pair that each text belongs to."""
    return {
        tuple(text): pair for side in (command.positive, command.negative) for pair, text in enumerate(side)
    }


def run(model: LinearModel, command: TrainConcept, cap: float = 0.6) -> tuple[Direction, ConceptReport]:
    published: list[Direction] = []
    work = train(ProbeFactory(command), Calibration(NORMS, cap), BLOCKS, 0, published.append)
    report = model.run(work)
    [direction] = published
    return direction, report


def test_the_direction_is_the_mean_difference_in_every_layer() -> None:
    model, command = LinearModel(), make_command()
    direction, _ = run(model, command)
    pairs = zip(command.positive, command.negative, strict=True)
    expected = np.mean([model.embed(p).mean(0) - model.embed(n).mean(0) for p, n in pairs], axis=0)
    np.testing.assert_allclose(direction.difference, np.tile(expected, (NUM_LAYERS, 1)), rtol=1e-5, atol=1e-6)


def test_strength_one_has_the_target_effect() -> None:
    """All pairs have the same difference, so the dose tuned on some pairs is right for the others."""
    orders = list(permutations(range(4)))
    positive, negative = ([[start + i for i in order] for order in orders] for start in (10, 40))
    model, command = LinearModel(), TrainConcept("kind", PROMPT, positive, negative, [[100, 101]])
    direction, report = run(model, command, cap=10.0)
    assert report.works is True
    expected = [strength * training._TARGET_SHIFT for strength in STRENGTHS]
    assert [effect.shift for effect in report.effects] == pytest.approx(expected, rel=1e-4)
    difference = model.embed([10, 11, 12, 13]).mean(0) - model.embed([40, 41, 42, 43]).mean(0)
    per_dose = 4.0 * np.linalg.norm(difference) / HIDDEN_SIZE
    assert direction.dose == pytest.approx(training._TARGET_SHIFT / per_dose, rel=1e-4)
    assert report.dose == direction.dose


def test_the_dose_stays_under_the_cap() -> None:
    direction, report = run(LinearModel(), make_command(), cap=0.05)
    assert direction.dose == pytest.approx(0.05)
    assert report.works is False


@pytest.mark.parametrize("cost", [5.0, 50.0])
def test_the_dose_is_limited_by_perplexity(cost: float) -> None:
    direction, report = run(LinearModel(cost=cost), make_command(), cap=10.0)
    ratio = max(effect.perplexity_ratio for effect in report.effects)
    assert ratio == pytest.approx(training._MAX_PERPLEXITY_RATIO, rel=0.1)
    assert direction.dose == pytest.approx(
        math.sqrt(math.log(training._MAX_PERPLEXITY_RATIO) / cost), rel=0.1
    )


def test_a_concept_whose_pairs_disagree_does_not_work() -> None:
    _, report = run(LinearModel(), make_command(mixes=True))
    assert report.works is False
    assert report.agreement is not None
    assert report.agreement < 0.15
    assert len(report.warnings) == 1


def test_a_model_without_any_effect_does_not_work() -> None:
    _, report = run(LinearModel(effect=0.0), make_command())
    assert report.works is False
    assert report.specificity is None


def test_effects_are_in_the_order_of_strength() -> None:
    _, report = run(LinearModel(), make_command())
    assert tuple(effect.strength for effect in report.effects) == STRENGTHS
    assert (report.effects[2].shift, report.effects[2].perplexity_ratio) == (0.0, 1.0)


def test_a_random_direction_has_far_less_effect() -> None:
    """In 64 dimensions, the cosine of two random directions is about an eighth."""
    _, report = run(LinearModel(), make_command())
    assert report.specificity is not None
    assert report.specificity > 3


@pytest.mark.parametrize("count", [2, 3, 5, 8, 18])
def test_no_pair_is_measured_with_a_direction_made_from_it(count: int) -> None:
    """Each pair has one token that no other pair has, and each token has its own dimension."""
    command = make_command(count)
    for pair in range(count):
        command.positive[pair].append(20 + pair)
    model = LinearModel()
    model.embeddings = np.eye(200, HIDDEN_SIZE)
    _, report = run(model, command)
    pairs = pairs_by_text(command)
    measured = set()
    for probe in (
        probe for probes in model.rounds[1:-1] for probe in probes
    ):  # the last are random directions
        assert probe.vectors is not None
        own = probe.vectors[:, 20 : 20 + count] != 0
        pair = pairs.get(tuple(probe.content_token_ids))
        if pair is None:
            assert own.all()  # neutral texts, with the direction of all pairs
        else:
            assert not own[:, pair].any()
            assert own.any()
            measured.add(pair)
    assert len(measured) > report.num_held_out > 0


def test_the_dose_is_not_tuned_on_pairs_of_the_report() -> None:
    model, command = LinearModel(), make_command(12)
    run(model, command)
    pairs = pairs_by_text(command)
    rounds = [
        {pairs[tuple(probe.content_token_ids)] for probe in probes if tuple(probe.content_token_ids) in pairs}
        for probes in model.rounds[1:]
    ]
    *tuned_on, effects, specificity = rounds
    assert effects == specificity
    assert effects
    assert all(some and not some & effects for some in tuned_on)


def test_with_two_pairs_one_is_held_out() -> None:
    _, report = run(LinearModel(), make_command(2))
    assert report.num_held_out == 1
    assert report.works is None
    assert len(report.effects) == 5


def test_a_single_pair_gives_a_direction_and_no_measurement() -> None:
    model = LinearModel(cost=5.0)
    direction, report = run(model, make_command(1), cap=0.6)
    assert report.works is None
    assert (report.num_held_out, report.effects, report.agreement) == (0, [], None)
    assert "a single example" in report.summary
    assert direction.dose == pytest.approx(math.sqrt(math.log(training._MAX_PERPLEXITY_RATIO) / 5.0), rel=0.1)


def test_a_single_pair_without_cost_gets_half_the_cap() -> None:
    direction, _ = run(LinearModel(), make_command(1), cap=0.6)
    assert direction.dose == pytest.approx(0.3)


def test_positive_equal_to_negative_is_untrainable() -> None:
    command = make_command()
    same = TrainConcept("kind", PROMPT, command.positive, command.positive, command.neutral)
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
    model, published = LinearModel(), []
    work = train(ProbeFactory(make_command()), Calibration(NORMS, 0.6), BLOCKS, 0, published.append)
    model.run(work)
    rounds_before = len(model.rounds) - 2
    again, published = LinearModel(), []
    work = train(ProbeFactory(make_command()), Calibration(NORMS, 0.6), BLOCKS, 0, published.append)
    for _ in range(rounds_before):
        assert published == []
        for probe in next(work):
            again.compute(probe)
    next(work)
    assert len(published) == 1


@pytest.mark.parametrize("cost", [1.0, 8.0, 200.0])
def test_the_cap_is_the_dose_at_which_a_random_direction_costs_too_much(cost: float) -> None:
    """The cap is interpolated linearly between the tried doses, although the model's cost is quadratic."""
    model = LinearModel(effect=0.0, cost=cost)
    calibration = model.run(calibrate(ProbeFactory(make_command()), BLOCKS))
    assert calibration.norms == pytest.approx(NORMS)
    doses = [0.0, *training._CAP_DOSES]
    costs = [cost * dose**2 for dose in doses]
    expected = float(np.interp(math.log(training._CAP_PERPLEXITY_RATIO), costs, doses))
    assert calibration.cap == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("count", [2, 12, 40])
def test_the_estimate_is_close_to_the_number_of_tokens_read(count: int) -> None:
    model, command = LinearModel(), make_command(count)
    run(model, command, cap=10.0)
    read = sum(len(probe.content_token_ids) for probes in model.rounds for probe in probes)
    assert 0.6 * read < estimate_tokens(command) < 2.5 * read

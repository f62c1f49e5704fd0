"""`make eval`: which answers count as fluent, which way is best, and how the other ways make vectors."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from app.schemas.reports import ConceptReport
from benchmarks.steering.compare import (
    MAX_LOSS,
    OURS,
    PROMPT,
    Answers,
    Array,
    Comparison,
    Trial,
    repeats_too_much,
)
from benchmarks.steering.measure import STRENGTHS, Evaluated
from benchmarks.steering.page import render
from benchmarks.steering.plots import _draw_comparison, draw, plt
from benchmarks.steering.requirements import advantage, excesses, faults, our_best, rivals
from benchmarks.steering.ways import all_ways
from inference.interface.concepts import AnswerEffect, Effect

HIDDEN_SIZE = 8
NUM_BLOCKS = 30


def make_trial(way: str, coefficient: float, *gains: float, **changes: float) -> Trial:
    answers = Answers(["some words"] * len(gains), np.array(gains), np.zeros(len(gains)))
    fluency = {"repetition": 0.0, "loops": 0.0, "loss": 0.0, **changes}
    return Trial(way, coefficient, answers, np.array(gains), **fluency)


def make_comparison(*trials: Trial) -> Comparison:
    plain = Answers(["some words"] * 2, np.zeros(2), np.zeros(2))
    return Comparison("food", 1, plain, list(trials))


def make_evaluated() -> Evaluated:
    """A concept with a comparison, and with all measurements."""
    effects = [Effect(s, s, 0.1, 1.0) for s in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    answers = [AnswerEffect(s, abs(s) / 2, 0.1, 3.0) for s in (-1.0, 0.0, 1.0)]
    report = msgspec.convert(
        {
            **dict.fromkeys(ConceptReport.__struct_fields__, 1),
            "works": True,
            "summary": "It works.",
            "warnings": [],
            "samples": [],
            "blocks": [1, 2],
            "down_blocks": [2, 3],
            "effects": effects,
            "answers": answers,
            "specificity": None,
            "specificity_error": None,
        },
        ConceptReport,
        from_attributes=True,
    )
    loop = Answers(["la la la la la la la"] * 2, np.array([4, 5]), np.zeros(2))
    ours = [make_trial(OURS, 1.0, 3, 5), Trial(OURS, 1.5, loop, np.array([4, 5]), 0.8, 1.0, 0.0)]
    return Evaluated(
        "food",
        "digest",
        held_out=[],
        report=report,
        comparisons=[make_comparison(*ours, make_trial("a", 1.0, 1, 1), make_trial(PROMPT, 1.0, 8, 8))],
        shifts={strength: strength for strength in STRENGTHS},
        ratios=dict.fromkeys(STRENGTHS, 1.1),
        divergence={-1.0: 0.1, 1.0: 0.2},
        random_shift=0.1,
        kept={"pirate": 0.9},
    )


@pytest.mark.parametrize("changes", [{"repetition": 0.3}, {"loops": 0.3}, {"loss": 1.5}])
def test_answers_that_are_not_fluent_do_not_count(changes: dict[str, float]) -> None:
    comparison = make_comparison(make_trial(OURS, 1.0, 1, 2), make_trial(OURS, 2.0, 3, 4, **changes))
    assert comparison.best(OURS).coefficient == 1.0
    assert comparison.best("other") is None


def test_loops_are_answers_that_mostly_repeat() -> None:
    texts = ["la la la la la la la", "one two three four five", "one two one two three four five six"]
    answers = Answers(texts, np.zeros(3), np.zeros(3))
    assert answers.repetitions.tolist() == [pytest.approx(0.8), 0.0, 0.0]
    assert answers.loops == pytest.approx(1 / 3)


def test_our_advantage_is_over_the_best_other_way_of_steering_at_the_same_cost() -> None:
    comparison = make_comparison(
        make_trial(OURS, 1.0, 3, 5, loss=0.65),
        make_trial("a", 1.0, 1, 1, loss=0.65),
        make_trial("b", 1.0, 2, 3, loss=0.65),
        make_trial("b", 2.0, 9, 9, loss=1.3),
        make_trial(PROMPT, 1.0, 8, 8),
    )
    assert rivals(comparison) == ["a", "b"]
    assert advantage(comparison)[0] == 1.5


def make_real_trial(plain: Answers, way: str, coefficient: float, gains: Array, loss: Array) -> Trial:
    """A trial whose loss depends on the prompts."""
    answers = Answers(plain.texts, plain.scores + gains, -loss)
    return Trial(way, coefficient, answers, gains, 0.0, 0.0, float(loss.mean()))


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 0.1), (1.0, 0.23)])
def test_the_error_of_the_advantage_includes_those_of_gains_and_costs(noise: float, expected: float) -> None:
    """At our cost, the other way has half of a gain of 5 ± 0.2. Its loss is 1.3 nats ± `noise` / 10."""
    random = np.random.default_rng(1)
    zeros = np.zeros(100)
    plain = Answers([f"text {number}" for number in range(100)], zeros, zeros)
    gains, losses = random.normal(5, 2, 100), random.normal(1.3, noise, 100)
    ours = make_real_trial(plain, OURS, 1.0, zeros + 5, zeros + 0.65)
    other = make_real_trial(plain, "a", 1.0, gains, losses)
    difference, error = advantage(Comparison("food", 1, plain, [ours, other]))
    assert difference == pytest.approx(5 - gains.mean() * 0.65 / losses.mean())
    assert error == pytest.approx(expected, rel=0.25)


def test_gains_are_interpolated_between_the_best_trials() -> None:
    comparison = make_comparison(
        make_trial("a", 1.0, 2, 4, loops=0.05),
        make_trial("a", 2.0, 1, 1, loops=0.1),  # costs more and gains less
        make_trial("a", 3.0, 6, 8, loops=0.15),
        make_trial("a", 4.0, 9, 8, loops=0.3, loss=np.inf),
    )
    gains = {
        cost: comparison.gains_at("a", cost).tolist() for cost in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 2.0)
    }
    assert gains[0.0] == [0, 0]
    assert gains[0.125] == pytest.approx([1, 2])
    assert gains[0.25] == pytest.approx([2, 4])
    assert gains[0.5] == pytest.approx([4, 6])
    assert gains[0.75] == pytest.approx([6, 8])
    assert gains[1.0] == pytest.approx([7, 8])
    assert gains[2.0] == pytest.approx([9, 8])


def test_a_cost_below_that_of_a_smaller_coefficient_is_chance() -> None:
    lucky = make_trial("a", 3.0, 6, 8, repetition=0.16)
    comparison = make_comparison(
        make_trial("a", 4.0, 9, 9, repetition=0.4),
        lucky,
        make_trial("a", 1.0, 2, 4, repetition=0.1),
        make_trial("a", 2.0, 3, 4, repetition=0.28),
    )
    assert comparison.costs("a") == pytest.approx([0.5, 1.1, 1.1, 2.0])
    assert comparison.cost(lucky) == pytest.approx(1.1)
    assert not comparison.is_fluent(lucky)
    assert comparison.best("a").coefficient == 1.0


def test_without_a_fluent_strength_our_best_is_the_one_that_costs_least() -> None:
    comparison = make_comparison(
        make_trial(OURS, 1.0, 3, 5, loss=1.5),
        make_trial(OURS, 2.0, 6, 9, loss=2.0),
        make_trial("a", 1.0, 1, 1),
    )
    assert our_best(comparison).coefficient == 1.0


def test_an_empty_answer_repeats_and_has_no_probability() -> None:
    answers = Answers(["", "one two three"], np.zeros(2), np.array([0.0, -1.0]))
    assert answers.repetitions.tolist() == [1.0, 0.0]
    assert answers.says_something.tolist() == [False, True]
    assert repeats_too_much(answers, Answers(["one two"] * 2, np.zeros(2)))


@pytest.mark.parametrize(("mean", "certain"), [(1.2, None), (1.35, False), (1.6, True)])
def test_a_strength_costs_too_much_only_if_its_error_is_smaller(mean: float, certain: bool | None) -> None:
    """The cost is mean / 1.3 ± 0.08."""
    zeros = np.zeros(100)
    plain = Answers([f"text {number}" for number in range(100)], zeros, zeros)
    noise = np.random.default_rng(2).normal(0, 1.04, 100)
    ours = make_real_trial(plain, OURS, 1.5, zeros + 5, mean + noise - noise.mean())
    found = excesses(Comparison("food", -1, plain, [ours]))
    assert [excess.is_certain for excess in found] == ([] if certain is None else [certain])
    for excess in found:
        assert excess.strength == -1.5
        assert excess.cost == pytest.approx(mean / MAX_LOSS)
        assert excess.error == pytest.approx(0.08, rel=0.2)


def test_the_page_names_what_is_not_met(tmp_path: Path) -> None:
    concept = make_evaluated()
    page = render([concept], ["Hello?", "And now?"], "a machine")
    fault = "food: answers at strength 1.5 are not fluent: their cost is 5.00 ± 0.00"
    assert f"- {fault}\n" in page
    assert "with its standard error: food at 1.5 (5.00 ± 0.00).\n" in page
    assert "| food +1 | +4.000 ± 1.000 at 1 | 0.00 | +1.000 | +3.000 ± " in page
    assert "| food +1 | +4.000 ± 1.000 (1) | +1.000 ± 0.000 (1) | +8.000" in page
    assert "| 1, 2; negative: 2, 3 |" in page
    assert "| a | 1 | 0 | 0 |" in page  # ahead of the way "a" for the one goal
    assert faults([concept]) == [fault]
    concept.comparisons[0].trials.pop(1)
    fluent = render([concept], ["Hello?", "And now?"], "a machine")
    assert "**All requirements are met.**" in fluent
    assert "with its standard error: none.\n" in fluent
    draw([concept], tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_text().count("food +1") >= 1


def test_a_way_has_the_same_colour_in_every_panel() -> None:
    ways = [OURS, PROMPT, "a", "b"]
    lines = []
    for counts in ((1, 1, 1, 1), (3, 1, 2, 1)):
        trials = [make_trial(way, c, 1, 2) for way, n in zip(ways, counts, strict=True) for c in range(n)]
        axes = plt.figure().add_subplot()
        _draw_comparison(axes, make_comparison(*trials))
        lines.append({line.get_label(): line.get_color() for line in axes.lines if line.get_label() in ways})
        plt.close()
    assert lines[0] == lines[1]
    assert len(set(lines[0].values())) == len(ways)


class Activations:
    """Texts that begin with "+" differ from the others by `concept`, and all by noise of their own."""

    num_blocks = NUM_BLOCKS

    def __init__(self) -> None:
        self.concept = torch.nn.functional.normalize(torch.randn(NUM_BLOCKS - 1, HIDDEN_SIZE), dim=1)

    def mean_hidden(self, texts: list[str]) -> torch.Tensor:
        rows = [
            0.1 * torch.randn(NUM_BLOCKS - 1, HIDDEN_SIZE) + self.concept * text.startswith("+")
            for text in texts
        ]
        return torch.stack(rows)


def test_the_other_ways_find_the_concept() -> None:
    torch.manual_seed(0)
    model = Activations()
    pairs = [{"positive": f"+{number}", "negative": f"-{number}"} for number in range(12)]
    ways = all_ways(model, pairs)
    assert [len(way.vectors) for way in ways] == [1, 1, 1, 13]
    assert list(ways[-1].vectors) == list(range(13, 26))
    for way in ways:
        assert list(way.coefficients) == sorted(way.coefficients)
        for block, vector in way.vectors.items():
            assert torch.cosine_similarity(vector, model.concept[block], dim=0) > 0.95
    for vector in ways[-1].vectors.values():
        assert vector.norm() == pytest.approx(1.0)

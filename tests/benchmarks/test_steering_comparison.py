"""`make eval`: which answers count as fluent, which way is best, and how the other ways make vectors."""

import numpy as np
import pytest
import torch

from benchmarks.steering.compare import OURS, PROMPT, Answers, Comparison, Trial
from benchmarks.steering.requirements import advantage, best_rival
from benchmarks.steering.ways import all_ways

HIDDEN_SIZE = 8
NUM_BLOCKS = 30


def make_trial(way: str, coefficient: float, *gains: float, **changes: float) -> Trial:
    answers = Answers(["some words"] * len(gains), np.array(gains), np.zeros(len(gains)))
    fluency = {"repetition": 0.0, "loops": 0.0, "loss": 0.0, **changes}
    return Trial(way, coefficient, answers, np.array(gains), **fluency)


def make_comparison(*trials: Trial) -> Comparison:
    plain = Answers(["some words"] * 2, np.zeros(2), np.zeros(2))
    return Comparison("kind", 1, plain, list(trials))


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


def test_our_advantage_is_over_the_best_other_way_of_steering_and_not_over_a_prompt() -> None:
    comparison = make_comparison(
        make_trial(OURS, 1.0, 3, 5),
        make_trial("a", 1.0, 1, 1),
        make_trial("b", 1.0, 2, 3),
        make_trial("b", 2.0, 9, 9, loops=0.9),
        make_trial(PROMPT, 1.0, 8, 8),
    )
    assert best_rival(comparison).way == "b"
    assert advantage(comparison) == (1.5, pytest.approx(0.5))


def test_a_way_without_fluent_answers_gains_nothing() -> None:
    assert advantage(make_comparison(make_trial("a", 1.0, 2, 4)))[0] == -3.0
    assert advantage(make_comparison(make_trial(OURS, 1.0, 2, 4)))[0] == 3.0


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

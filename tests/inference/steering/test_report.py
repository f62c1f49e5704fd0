"""The report judges the measurements, and names each requirement that a concept does not meet."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from inference.interface.concepts import ConceptReport, Effect
from inference.steering.answers import Answers
from inference.steering.measurements import Estimate
from inference.steering.report import Findings, agreement, judge, spearman
from tests.inference.steering.conftest import make_direction

GOOD = (
    Effect(-1.0, -0.8, 0.1, 1.2),
    Effect(-0.5, -0.4, 0.05, 1.1),
    Effect(0.0, 0.0, 0.0, 1.0),
    Effect(0.5, 0.4, 0.05, 1.1),
    Effect(1.0, 0.8, 0.1, 1.2),
)
NUM_ANSWERS = 10


def make_answers(
    reading: float = 0.5, num_moved: int = NUM_ANSWERS, repetition: float = 0.1, logprob: float = -1.0
) -> Answers:
    """Answers of which `num_moved` read as `reading`, and the others as 0.5."""
    return Answers(
        questions=list(range(1, 2 * NUM_ANSWERS, 2)),
        token_ids=[[number, 7] for number in range(NUM_ANSWERS)],
        readings=np.array([reading] * num_moved + [0.5] * (NUM_ANSWERS - num_moved)),
        logprobs=np.full(NUM_ANSWERS, logprob),
        repetitions=np.full(NUM_ANSWERS, repetition),
    )


def make_findings(**changes: object) -> Findings:
    """A concept that works, except for the changes."""
    return Findings(
        **{
            "direction": make_direction(1, 0.25, (0, 2), max_strength=1.5),
            "norms": (15.0, 20.0, 25.0),
            "num_distinct": 20,
            "num_groups": 20,
            "num_held_out": 16,
            "agreement": 0.5,
            "effects": list(GOOD),
            "specificity": Estimate(20.0, 1.0),
            "answers": {-1.0: make_answers(-0.1, 5), 0.0: make_answers(), 1.0: make_answers(1.2, 5)},
            **changes,
        }
    )


def make_report(
    shifts: tuple[float, ...] = (),
    errors: tuple[float | None, float | None] = (0.1, 0.1),
    specificity: float | None = 20.0,
    **changes: object,
) -> ConceptReport:
    """`shifts`: from -1 on. `errors`: of the shifts at -1 and 1."""
    effects = [Effect(*effect) for effect in map(_values, GOOD)]
    for i, shift in enumerate(shifts):
        effects[i] = Effect(effects[i].strength, shift, effects[i].shift_error, effects[i].perplexity_ratio)
    for i, error in zip((0, -1), errors, strict=True):
        effects[i] = Effect(effects[i].strength, effects[i].shift, error, effects[i].perplexity_ratio)
    ratio = None if specificity is None else Estimate(specificity, 0.1 * abs(specificity))
    return judge(make_findings(**{"effects": effects, "specificity": ratio, **changes}))


def _values(effect: Effect) -> tuple[float, ...]:
    return effect.strength, effect.shift, effect.shift_error, effect.perplexity_ratio


def answers(**changes: Answers) -> dict[float, Answers]:
    """Good answers, but for those at strength `down` (-1), `plain` (0) or `up` (1)."""
    given = {-1.0: changes.get("down"), 0.0: changes.get("plain"), 1.0: changes.get("up")}
    good = make_findings().answers
    return {strength: given[strength] or good[strength] for strength in good}


@pytest.mark.parametrize("count", [2, 3, 10])
def test_agreement_is_the_mean_cosine_of_all_pairs(count: int) -> None:
    rows = np.random.default_rng(count).standard_normal((count, 7)) + 0.5

    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        return float(one @ other / math.sqrt((one @ one) * (other @ other)))

    expected = np.mean([cosine(*pair) for pair in combinations(rows, 2)])
    assert agreement(rows) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 2.0], [2.0, 4.0]], 1.0),
        ([[1.0, 2.0], [-3.0, -6.0]], -1.0),
        ([[1.0, 0.0], [0.0, 5.0]], 0.0),
        ([[1.0, 0.0], [0.0, 0.0]], 0.0),
        ([[1.0, 0.0]], None),
    ],
)
def test_agreement_of_a_few_rows(rows: list[list[float]], expected: float | None) -> None:
    assert agreement(np.array(rows)) == pytest.approx(expected)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9, unique=True))
def test_spearman_equals_scipy(values: list[float]) -> None:
    assert spearman(values) == pytest.approx(spearmanr(range(len(values)), values).statistic)


@pytest.mark.parametrize("values", [[0.0] * 5, [0.0, 0.0, 0.1, 0.2, 0.3]])
def test_equal_values_give_a_low_rank_correlation(values: list[float]) -> None:
    assert spearman(values) < 0.95


def test_a_good_concept_works() -> None:
    report = make_report()
    assert report.works is True, report.summary
    assert report.summary.startswith("The concept works.")
    assert report.warnings == []
    assert report.spearman == 1.0
    assert report.effects == list(GOOD)
    assert (report.num_examples, report.num_held_out) == (20, 16)
    assert (report.agreement, report.specificity, report.specificity_error) == (0.5, 20.0, 2.0)
    assert (report.blocks, report.reading_block) == ([0, 2], 0)
    assert report.dose == report.down_dose == pytest.approx(0.25)
    assert (report.max_strength, report.max_down_strength) == (1.5, 2.0)


def test_blocks_of_negative_strengths_are_reported_if_they_differ() -> None:
    direction = make_direction(1, 0.25, (0, 1, 2), up_blocks=(0, 2), down_blocks=(1,))
    report = make_report(direction=direction)
    assert (report.blocks, report.down_blocks) == ([0, 2], [1])
    assert report.summary.endswith("Steered decoder blocks: 0, 2; with negative strengths 1.")
    assert (report.dose, report.down_dose) == pytest.approx((0.25, 0.25))


def test_answers_at_minus_1_are_compared_with_those_that_were_read_in_the_same_way() -> None:
    report = make_report(plain_down=make_answers(-0.4))
    assert [effect.moved for effect in report.answers] == [0.0, 0.0, 0.5]


def test_the_summary_has_the_measured_figures() -> None:
    summary = make_report((-0.61,), errors=(0.11, 0.09)).summary
    for figure in ("+0.80 ± 0.09", "-0.61 ± 0.11", "50%", "decoder blocks: 0, 2"):
        assert figure in summary


def test_the_answers_are_reported() -> None:
    report = make_report(answers=answers(up=make_answers(1.2, 7, 0.2, -1.5)))
    assert [effect.strength for effect in report.answers] == [-1.0, 0.0, 1.0]
    assert [effect.moved for effect in report.answers] == [0.5, 0.0, 0.7]
    assert [effect.repetition for effect in report.answers] == pytest.approx([0.1, 0.1, 0.2])
    assert report.answers[2].perplexity == pytest.approx(math.exp(1.5))
    assert [(s.strength, s.question, s.token_ids) for s in report.samples] == [
        (strength, 2 * number + 1, [number, 7]) for strength in (-1.0, 0.0, 1.0) for number in (0, 1)
    ]


RAISES = "strength 1 does not clearly raise the log odds"
LOWERS = "strength -1 does not clearly lower the log odds"
UNORDERED = "the effect does not always grow with the strength"
UNSPECIFIC = "times the effect of random directions"
UNSEEN = "visibly changes only"
NOT_FLUENT = "are not fluent"


@pytest.mark.parametrize(
    ("report", "faults"),
    [
        (make_report((-0.8, -0.4, 0.0, 0.4, 0.44)), {RAISES}),
        (make_report((-0.44,)), {LOWERS}),
        (make_report(errors=(0.3, 0.3)), {RAISES, LOWERS}),
        (make_report((0.8,)), {LOWERS, UNORDERED}),
        (make_report((-0.8, -0.4, 0.0, 0.9)), {UNORDERED}),
        (make_report((-0.8, -0.8)), {UNORDERED}),
        (make_report(specificity=3.7), {UNSPECIFIC}),
        (make_report(specificity=-20.0), {UNSPECIFIC}),
        (make_report((math.nan,)), {LOWERS, UNORDERED}),
        (make_report(errors=(math.nan, 0.1)), {LOWERS}),
        (make_report(specificity=math.nan), {UNSPECIFIC}),
        (make_report(answers=answers(up=make_answers(1.2, 3))), {UNSEEN}),
        (make_report(answers=answers(down=make_answers(-0.1, 0))), {UNSEEN}),
        (make_report(answers=answers(up=make_answers(0.9, 10))), {UNSEEN}),
        (make_report(answers=answers(up=make_answers(-0.1, 10))), {UNSEEN}),
        (make_report(answers=answers(up=make_answers(1.2, 5, 0.4))), {NOT_FLUENT}),
        (make_report(answers=answers(down=make_answers(-0.1, 5, logprob=-3.0))), {NOT_FLUENT}),
    ],
)
def test_each_fault_is_named(report: ConceptReport, faults: set[str]) -> None:
    assert report.works is False
    named = (RAISES, LOWERS, UNORDERED, UNSPECIFIC, UNSEEN, NOT_FLUENT)
    assert {fault for fault in named if fault in report.summary} == faults
    assert report.summary.startswith("The concept does not work: ")


@pytest.mark.parametrize(
    "report",
    [
        make_report((-0.45, -0.4, 0.0, 0.4, 0.45)),
        make_report(specificity=3.76),
        make_report(specificity=None),
        make_report(num_distinct=8, num_groups=8),
        make_report(agreement=0.15),
        make_report(agreement=0.85),
        make_report(answers=answers(up=make_answers(1.0, 4))),
        make_report(answers={}),
    ],
)
def test_a_concept_just_within_a_limit_works(report: ConceptReport) -> None:
    assert report.works is True, report.summary
    assert report.warnings == []


def test_answers_that_are_like_the_examples_already_need_not_move() -> None:
    plain, down = make_answers(0.9, 10), make_answers(0.2, 10)
    report = make_report(answers={-1.0: down, 0.0: plain, 1.0: plain})
    assert report.works is True, report.summary
    [warning] = report.warnings
    assert warning.startswith("answers without steering are already like the positive examples")
    assert (
        "strength 1 visibly changes 0% (without steering they are already like these examples) "
        "and strength -1 100%." in report.summary
    )


def test_a_concept_may_cost_what_its_own_words_cost() -> None:
    up = make_answers(1.2, 5, logprob=-2.9)
    assert make_report(answers=answers(up=up)).works is False
    assert make_report(answers=answers(up=up), logprob_gap=1.0).works is True
    assert make_report(answers=answers(up=up), logprob_gap=-1.0).works is False


@pytest.mark.parametrize("agreement", [0.149, 0.0, -0.2, 0.86, 1.0])
def test_unusual_agreement_is_a_warning_and_no_fault(agreement: float) -> None:
    report = make_report(agreement=agreement)
    assert report.works is True
    [warning] = report.warnings
    assert f"mean cosine {agreement:.2f}" in warning


@pytest.mark.parametrize("shifts", [(), (0.5,)])
def test_too_few_groups_give_no_judgement(shifts: tuple[float, ...]) -> None:
    report = make_report(shifts, num_groups=7)
    assert report.works is None
    assert report.summary.startswith(
        "There are too few different examples to tell whether the concept works: 7, "
        "but at least 8 are needed."
    )


def test_a_concept_that_was_not_measured_on_pairs_is_not_judged() -> None:
    unmeasured = {"effects": [], "specificity": None, "agreement": None, "answers": {}}
    report = judge(make_findings(num_distinct=1, num_groups=1, **unmeasured))
    assert report.works is None
    assert (report.agreement, report.spearman, report.specificity, report.effects) == (None, None, None, [])
    assert report.warnings == []
    assert "a single example" in report.summary
    alike = judge(make_findings(num_distinct=5, num_groups=1, **unmeasured))
    assert "all examples are almost the same" in alike.summary
    given = judge(make_findings(num_distinct=0, num_groups=0, **unmeasured))
    assert given.summary.startswith("The vectors were not measured, because no examples came with them.")

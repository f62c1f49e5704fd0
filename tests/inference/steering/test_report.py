"""The report judges the measurements, and names each requirement that a concept does not meet."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from inference.interface.protocol import ConceptReport, Effect
from inference.steering.report import agreement, judge, spearman

GOOD = (
    Effect(-1.0, -0.8, 1.2),
    Effect(-0.5, -0.4, 1.1),
    Effect(0.0, 0.0, 1.0),
    Effect(0.5, 0.4, 1.1),
    Effect(1.0, 0.8, 1.2),
)


def make_report(
    shifts: tuple[float, ...] = (),
    ratios: tuple[float, float] = (1.2, 1.2),
    *,
    num_examples: int = 20,
    agreement: float | None = 0.5,
    specificity: float | None = 20.0,
) -> ConceptReport:
    """A report of a concept that works, except for the given values. `ratios`: perplexity at -1 and 1."""
    changed = list(GOOD)
    for i, shift in enumerate(shifts):
        changed[i] = Effect(GOOD[i].strength, shift, GOOD[i].perplexity_ratio)
    for i, ratio in zip((0, -1), ratios, strict=True):
        changed[i] = Effect(changed[i].strength, changed[i].shift, ratio)
    return judge(
        num_examples=num_examples,
        num_held_out=8,
        agreement=agreement,
        effects=changed,
        specificity=specificity,
        block=5,
        dose=0.25,
    )


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
    assert report.works is True
    assert report.summary.startswith("The concept works.")
    assert report.warnings == []
    assert report.spearman == 1.0
    assert report.effects == list(GOOD)
    assert (report.num_examples, report.num_held_out) == (20, 8)
    assert (report.agreement, report.specificity) == (0.5, 20.0)
    assert (report.block, report.dose) == (5, 0.25)


def test_the_summary_has_the_measured_figures() -> None:
    summary = make_report((-0.61,), ratios=(1.31, 1.22)).summary
    for figure in ("+0.80", "-0.61", "1.31"):
        assert figure in summary


SMALL = "at least 0.5 nats per token"
UNORDERED = "the effect does not always grow with the strength"
UNSPECIFIC = "times the effect of random directions"
NOT_FLUENT = "raises the perplexity of neutral texts by over 50%"


@pytest.mark.parametrize(
    ("report", "faults"),
    [
        (make_report((-0.8, -0.4, 0.0, 0.4, 0.49)), {SMALL}),
        (make_report((-0.49,)), {SMALL}),
        (make_report((0.8,)), {SMALL, UNORDERED}),
        (make_report((-0.8, -0.4, 0.0, 0.9)), {UNORDERED}),
        (make_report((-0.8, -0.8)), {UNORDERED}),
        (make_report(specificity=4.99), {UNSPECIFIC}),
        (make_report(specificity=-20.0), {UNSPECIFIC}),
        (make_report(ratios=(1.51, 1.0)), {NOT_FLUENT}),
        (make_report(ratios=(1.0, 1.51)), {NOT_FLUENT}),
        (
            make_report((-0.1,), ratios=(2.0, 2.0), specificity=0.5),
            {SMALL, UNSPECIFIC, NOT_FLUENT, UNORDERED},
        ),
        (make_report((math.nan,)), {SMALL, UNORDERED}),
        (make_report(specificity=math.nan), {UNSPECIFIC}),
        (make_report(ratios=(math.nan, 1.0)), {NOT_FLUENT}),
        (make_report(ratios=(1.0, math.nan)), {NOT_FLUENT}),
    ],
)
def test_each_fault_is_named(report: ConceptReport, faults: set[str]) -> None:
    assert report.works is False
    assert {f for f in (SMALL, UNORDERED, UNSPECIFIC, NOT_FLUENT) if f in report.summary} == faults
    assert report.summary.startswith("The concept does not work: ")


@pytest.mark.parametrize(
    "report",
    [
        make_report((-0.5, -0.4, 0.0, 0.4, 0.5)),
        make_report(ratios=(1.5, 1.5)),
        make_report(specificity=5.0),
        make_report(specificity=None),
        make_report(num_examples=8),
        make_report(agreement=0.15),
    ],
)
def test_a_concept_exactly_at_a_limit_works(report: ConceptReport) -> None:
    assert report.works is True
    assert report.warnings == []


@pytest.mark.parametrize("agreement", [0.149, 0.0, -0.2])
def test_low_agreement_is_a_warning_and_no_fault(agreement: float) -> None:
    report = make_report(agreement=agreement)
    assert report.works is True
    [warning] = report.warnings
    assert f"mean cosine {agreement:.2f}" in warning


@pytest.mark.parametrize("shifts", [(), (0.5,)])
def test_too_few_examples_give_no_judgement(shifts: tuple[float, ...]) -> None:
    report = make_report(shifts, num_examples=7)
    assert report.works is None
    assert report.summary.startswith(
        "There are too few examples to tell whether the concept works: 7, but at least 8 are needed."
    )


def test_a_concept_with_a_single_example_is_not_measured() -> None:
    report = judge(
        num_examples=1,
        num_held_out=0,
        agreement=None,
        effects=[],
        specificity=None,
        block=1,
        dose=0.1,
    )
    assert report.works is None
    assert (report.agreement, report.spearman, report.specificity, report.effects) == (None, None, None, [])
    assert report.warnings == []
    assert "a single example" in report.summary

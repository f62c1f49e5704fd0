"""Trains a concept: finds its direction, decoder blocks and doses, and measures their effect.

docs/steering.md says why. The steps are generators: each yields the probes or answers it needs next, and
continues when they are computed. They do not know how the engine computes them, and they know no requests.
"""

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from inference.interface.concepts import ConceptReport, GivenVectors, TrainConcept
from inference.scheduling.probe import Work
from inference.steering import effects, refinement, report
from inference.steering.answers import Answers, AnswerSheet
from inference.steering.directions import Calibration, Direction
from inference.steering.given import given_direction
from inference.steering.limits import limit
from inference.steering.measurements import Examples, HeldOutDirections, Measurement, ProbeFactory
from inference.steering.refinement import RefinementError, refine
from inference.steering.report import Findings
from inference.steering.search import Finalist, RefinedBlocks, find_dose, search
from inference.steering.tuning import tune

TRAINING_VERSION = 12
"""Increase it when a change of the code gives another direction, dose or report for the same examples."""

Publish = Callable[[Direction], None]

_REFINED_FOLDS = 2
"""Fewer than usual, because each fold refines directions of its own, and most of the time goes into that."""
_ROUNDING = 1e-4
"""A smaller difference, relative to the activations' norm, may be rounding alone."""


class UntrainableError(Exception):
    """The examples give no direction. The message is for the author of the examples."""


def train(
    command: TrainConcept,
    calibration: Calibration,
    candidates: list[tuple[int, ...]],
    max_tokens: int,
    publish: Publish,
    refined: RefinedBlocks | None = None,
) -> Generator[Work, None, ConceptReport]:
    """Returns the report. Calls `publish` with the direction before it measures the direction's effects.

    `candidates`: sets of decoder blocks to choose from. `max_tokens`: limit for a prompt and an answer
    together. `refined`: where to steer by refined directions, instead of the candidates. None, or if the
    model cannot be differentiated, or if refined directions fall short: the directions are the mean
    differences. Raises UntrainableError if the examples give no direction, or if given vectors do not fit.
    """
    factory = ProbeFactory(command)
    sheet = AnswerSheet(command.questions, command.stop_token_ids, max_tokens, command.continuations)
    plain = factory.capture()
    yield plain.probes
    if command.vectors is not None:
        examples = Examples(factory, plain, calibration.norms)
        made = yield from _use(command.vectors, examples, sheet, publish)
    else:
        made = yield from _make(factory, plain, calibration.norms, candidates, refined, sheet)
        publish(made.directions.full)
    examples, directions = made.examples, made.directions
    findings = replace(
        _describe(command, examples, directions.full),
        answers=made.answers,
        plain_down=made.plain_down,
        refinement_fault=made.refinement_fault,
    )
    if factory.num_pairs and (examples.num_groups > 1 or command.vectors is not None):
        measured, change = yield from effects.measure(examples, directions)
        specificity = yield from effects.measure_specificity(examples, directions.full, change)
        findings = replace(
            findings,
            num_held_out=len(effects.measured_pairs(examples)),
            effects=measured,
            specificity=specificity,
        )
    return report.judge(findings)


class _Made(NamedTuple):
    """Directions with their doses."""

    examples: Examples
    directions: HeldOutDirections
    answers: dict[float, Answers]
    """At the strengths -1, 0 and 1. Empty if there are no questions."""
    plain_down: Answers | None = None
    refinement_fault: str = ""


def _use(
    vectors: GivenVectors, examples: Examples, sheet: AnswerSheet, publish: Publish
) -> Generator[Work, None, _Made]:
    """Vectors that were made elsewhere, in their own scale."""
    try:
        direction = given_direction(vectors, examples)
    except ValueError as error:
        raise UntrainableError(str(error)) from None
    directions = HeldOutDirections(direction, [direction], [0] * examples.factory.num_pairs)
    publish(direction)
    answers = (yield from sheet.ask(direction, [-1.0, 0.0, 1.0])) if sheet.questions else {}
    return _Made(examples, directions, answers)


def _make(
    factory: ProbeFactory,
    plain: Measurement,
    norms: tuple[float, ...],
    candidates: list[tuple[int, ...]],
    refined: RefinedBlocks | None,
    sheet: AnswerSheet,
) -> Generator[Work, None, _Made]:
    """Refined directions, unless they fall short. Then the mean differences, unless these do so, too."""
    attempt, fault = None, ""
    if refined:
        examples = Examples(factory, plain, norms, _REFINED_FOLDS)
        _check(examples, (*refined.steered, refined.read))
        try:
            directions, dose = yield from refine(examples, refined)
        except RefinementError as error:
            fault = str(error)
        else:
            finalist = yield from find_dose(examples, directions, dose)
            attempt, fault = yield from _tune(examples, [finalist], sheet)
            if not fault:
                return attempt
    examples = Examples(factory, plain, norms)
    for blocks in candidates:
        _check(examples, blocks)
    finalists = yield from search(examples, candidates)
    made, shortcoming = yield from _tune(examples, finalists, sheet)
    return attempt if attempt and shortcoming else made._replace(refinement_fault=fault)


def _tune(
    examples: Examples, finalists: list[Finalist], sheet: AnswerSheet
) -> Generator[Work, None, tuple[_Made, str]]:
    """The best of the directions, with doses for both signs, and how they fall short. Empty: they do not."""
    if not sheet.questions:
        dose = finalists[0].dose
        return _Made(examples, finalists[0].directions.rescaled(dose, dose), {}), ""
    tuned = down, up = yield from tune(examples, finalists, sheet)
    limited = yield from limit(down, up, examples.logprob_gap(), sheet)
    made = _Made(examples, limited.directions, limited.answers, limited.plain_down)
    if any(one.rough for one in tuned):
        return made, "with refinement, answers would be fluent at strength 1, but not at smaller ones"
    if limited.unmoved:
        return made, f"with refinement, strength {limited.unmoved[0]:g} would change too few answers"
    return made, ""


def _describe(command: TrainConcept, examples: Examples, direction: Direction) -> Findings:
    findings = Findings(direction, tuple(examples.norms.tolist()), len(command.positive))
    if not command.positive:
        return findings
    return replace(
        findings,
        given=command.vectors is not None,
        num_duplicates=command.num_duplicates,
        num_groups=examples.num_groups,
        agreement=report.agreement(examples.differences(direction.reading_block)),
        logprob_gap=examples.logprob_gap(),
    )


def estimate_tokens(command: TrainConcept, refines: bool = False) -> int:
    """About how many tokens `train` reads and generates. The progress is relative to this number."""
    refined = refinement.estimate_tokens(command, _REFINED_FOLDS) if refines else 0
    return effects.estimate_tokens(command) + refined


def _check(examples: Examples, blocks: tuple[int, ...]) -> None:
    """Raises UntrainableError if a mean difference is not finite, or zero except for rounding."""
    smallest = _ROUNDING * examples.norms[list(blocks)]
    lengths = examples.lengths(blocks)
    if not np.isfinite(lengths).all():
        raise UntrainableError("the model's activations for these examples are not finite")
    if not (lengths > smallest).all():
        raise UntrainableError(
            "the model's activations are the same for the positive and the negative examples"
        )
    for fold in range(examples.num_folds) if examples.num_folds > 1 else ():
        if not (examples.lengths(blocks, fold) > smallest).all():
            raise UntrainableError(
                "without some of the examples, the model's activations are the same for the positive and the "
                "negative ones: do some examples swap the texts of others?"
            )

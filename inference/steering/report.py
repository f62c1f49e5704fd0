"""Judges a concept by its measurements, and says the result in words. Knows no tensors and no model."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from inference.interface.concepts import AnswerEffect, ConceptReport, Effect, SampleAnswer
from inference.scheduling.arrays import Array64
from inference.steering.answers import MIN_MOVED, Answers, has_room, is_fluent, moved
from inference.steering.directions import Direction, relative_dose
from inference.steering.measurements import Estimate

MIN_SHIFT = 0.25
"""Nats per token: the shift at strength 1, less twice its standard error, must be at least this."""
MIN_SPEARMAN = 0.95
MIN_SPECIFICITY = 3.0
"""The specificity, less twice its standard error, must be at least this."""
MIN_AGREEMENT = 0.15
MAX_AGREEMENT = 0.85
MIN_GROUPS = 8
"""Fewer different examples do not show whether a concept works on other texts."""
_ERRORS = 2
_NUM_SAMPLES = 2


@dataclass(frozen=True)
class Findings:
    """What training has found out about a concept."""

    direction: Direction
    norms: tuple[float, ...]
    """Mean norms of all decoder blocks' output."""
    num_distinct: int
    """Number of pairs without exact duplicates. 0 if only vectors were given."""
    given: bool = False
    """Whether the vectors were made elsewhere, perhaps from the same pairs."""
    num_duplicates: int = 0
    num_groups: int = 0
    """Number of groups of pairs that are almost alike."""
    agreement: float | None = None
    logprob_gap: float = 0.0
    """How much less likely positive texts are than negative ones, in nats per token."""
    num_held_out: int = 0
    """Number of pairs that were measured."""
    effects: list[Effect] = field(default_factory=list)
    """By strength, from -1 to 1. Empty if no pair could be measured."""
    specificity: Estimate | None = None
    answers: dict[float, Answers] = field(default_factory=dict)
    """At the strengths -1, 0 and 1. Empty if there are no questions."""
    plain_down: Answers | None = None
    """The answers at strength 0, read as those at -1 are. None: all are read in the same way."""
    refinement_fault: str = ""
    """Why the direction was not refined, though it was meant to be."""

    @property
    def spearman(self) -> float | None:
        return spearman([effect.shift for effect in self.effects]) if self.effects else None

    def moved(self, sign: float) -> float:
        """Share of the answers that strength `sign` moves."""
        return float(moved(self._plain(sign), self.answers[sign], sign).mean())

    def has_room(self, sign: float) -> bool:
        """Whether answers without steering are far enough from the sign's examples to be moved."""
        return has_room(self._plain(sign), sign)

    def is_fluent(self, sign: float) -> bool:
        return is_fluent(self._plain(sign), self.answers[sign], sign * self.logprob_gap)

    def _plain(self, sign: float) -> Answers:
        return self.answers[0.0] if sign > 0 or self.plain_down is None else self.plain_down


def agreement(differences: Array64) -> float | None:
    """Mean cosine between two different rows of [N, hidden_size]. None for a single row."""
    count = len(differences)
    if count < 2:
        return None
    lengths = np.linalg.norm(differences, axis=1, keepdims=True)
    unit = differences / np.where(lengths > 0, lengths, 1.0)
    total = np.square(unit.sum(0)).sum() - np.square(unit).sum()
    return float(total / (count * (count - 1)))


def spearman(values: list[float]) -> float:
    """Rank correlation of the values with their order in the list. If two values are equal, at most 0."""
    ranks = np.argsort(np.argsort(values)) if len(set(values)) == len(values) else np.zeros(len(values))
    count = len(values)
    return float(1 - 6 * np.square(ranks - np.arange(count)).sum() / (count * (count**2 - 1)))


def judge(findings: Findings) -> ConceptReport:
    """Judges the measurements."""
    direction, specificity = findings.direction, findings.specificity
    faults = list(_faults(findings))
    enough = findings.num_groups >= MIN_GROUPS and bool(findings.effects)
    return ConceptReport(
        works=not faults if enough else None,
        summary=_summary(findings, faults, enough),
        warnings=list(_warnings(findings)),
        num_examples=findings.num_distinct + findings.num_duplicates,
        num_distinct=findings.num_distinct,
        num_groups=findings.num_groups,
        num_held_out=findings.num_held_out,
        agreement=findings.agreement,
        effects=findings.effects,
        spearman=findings.spearman,
        specificity=specificity.mean if specificity else None,
        specificity_error=specificity.error if specificity else None,
        answers=list(_answer_effects(findings)),
        samples=list(_samples(findings)),
        blocks=list(direction.steered(1.0)),
        down_blocks=list(direction.steered(-1.0)),
        reading_block=direction.reading_block,
        dose=relative_dose(direction, findings.norms),
        down_dose=relative_dose(direction, findings.norms, -1.0),
        max_strength=direction.max_strength,
        max_down_strength=direction.max_down_strength,
    )


def _answer_effects(findings: Findings) -> Iterator[AnswerEffect]:
    for strength, answers in findings.answers.items():
        share = findings.moved(strength) if strength else 0.0
        yield AnswerEffect(strength, share, answers.repetition, answers.perplexity)


def _samples(findings: Findings) -> Iterator[SampleAnswer]:
    for strength, answers in findings.answers.items():
        numbered = zip(answers.questions, answers.token_ids, strict=True)
        for question, token_ids in itertools.islice(numbered, _NUM_SAMPLES):
            yield SampleAnswer(strength, question, token_ids)


def _faults(findings: Findings) -> Iterator[str]:
    """The requirements that the concept does not meet, most important first."""
    if not findings.effects:
        return
    yield from _faults_of_answers(findings)
    down, up = findings.effects[0], findings.effects[-1]
    if not (_at_least(up.shift, up.shift_error) >= MIN_SHIFT):
        yield f"strength 1 does not clearly raise the log odds by {MIN_SHIFT} nats per token"
    if not (_at_least(-down.shift, down.shift_error) >= MIN_SHIFT):
        yield f"strength -1 does not clearly lower the log odds by {MIN_SHIFT} nats per token"
    if not (findings.spearman or 0.0) >= MIN_SPEARMAN:
        yield "the effect does not always grow with the strength"
    ratio = findings.specificity
    if ratio is not None and not _at_least(ratio.mean, ratio.error) >= MIN_SPECIFICITY:
        yield (
            f"its effect is only {_shown(ratio.mean, ratio.error, 1)} times the effect of random directions, "
            f"but must clearly be more than {MIN_SPECIFICITY:.0f} times"
        )


def _faults_of_answers(findings: Findings) -> Iterator[str]:
    for sign in (1.0, -1.0) if findings.answers else ():
        share = findings.moved(sign)
        if findings.has_room(sign) and share < MIN_MOVED:
            yield f"strength {sign:g} visibly changes only {share:.0%} of the generated answers"
    yield from _faults_of_fluency(findings)


def _faults_of_fluency(findings: Findings) -> Iterator[str]:
    for sign in (1.0, -1.0) if findings.answers else ():
        if not findings.is_fluent(sign):
            yield f"answers at strength {sign:g} are not fluent"


def _at_least(value: float, error: float | None) -> float:
    """The lower limit of a value that has a standard error."""
    return value - _ERRORS * (error or 0.0)


def _warnings(findings: Findings) -> Iterator[str]:
    value = findings.agreement
    if findings.num_duplicates:
        yield f"{findings.num_duplicates} of the examples are exact duplicates and were left out"
    if findings.num_groups < findings.num_distinct:
        yield (
            f"the {findings.num_distinct} examples count as {findings.num_groups} only, because some share a "
            "text or differ in single words"
        )
    if value is not None and value < MIN_AGREEMENT:
        yield (
            "steering by this concept may be unreliable, because the example pairs do not differ in the same "
            f"way (mean cosine {value:.2f}, below {MIN_AGREEMENT}): check that the two texts of each pair "
            "differ only in the concept, and that positive and negative are not swapped"
        )
    if value is not None and value > MAX_AGREEMENT:
        yield (
            f"the example pairs differ in almost the same way (mean cosine {value:.2f}, above "
            f"{MAX_AGREEMENT}), so they may show one sentence or topic instead of the concept: add pairs on "
            "other topics"
        )
    if findings.refinement_fault:
        yield f"its direction was not refined: {findings.refinement_fault}"
    if not findings.num_distinct:
        yield from _faults_of_fluency(findings)
    for sign, word in ((1.0, "positive"), (-1.0, "negative")):
        if findings.num_distinct and findings.answers and not findings.has_room(sign):
            yield (
                f"answers without steering are already like the {word} examples, so strength {sign:g} can "
                "hardly change them"
            )


def _summary(findings: Findings, faults: list[str], enough: bool) -> str:
    measured = " ".join(_measured(findings))
    if not findings.num_distinct:
        return f"The vectors were not measured, because no examples came with them. {measured}".strip()
    if not findings.effects:
        reason = "none can be held out for measuring, because all examples are almost the same"
        if findings.num_distinct == 1:
            reason = "a single example cannot be held out for measuring"
        return f"It cannot be told whether the concept works: {reason}. {measured}".strip()
    if not enough:
        return (
            "There are too few different examples to tell whether the concept works: "
            f"{findings.num_groups}, but at least {MIN_GROUPS} are needed. {measured}"
        )
    if faults:
        return f"The concept does not work: {'; '.join(faults)}. {measured}"
    return f"The concept works. {measured}"


def _measured(findings: Findings) -> Iterator[str]:
    if findings.effects:
        down, up = findings.effects[0], findings.effects[-1]
        where = "On the examples that came with the vectors" if findings.given else "On held-out examples"
        yield (
            f"{where}, strength 1 changes the log odds of positive over negative texts by "
            f"{_shown(up.shift, up.shift_error)} nats per token, and strength -1 by "
            f"{_shown(down.shift, down.shift_error)}."
        )
    if findings.answers and findings.num_distinct:
        yield (
            f"Of {len(findings.answers[0.0].token_ids)} generated answers, strength 1 visibly changes "
            f"{_shown_share(findings, 1.0)} and strength -1 {_shown_share(findings, -1.0)}."
        )
    blocks, others = findings.direction.steered(1.0), findings.direction.steered(-1.0)
    negative = "" if blocks == others else f"; with negative strengths {_listed(others)}"
    yield f"Steered decoder block{'s' * (len(blocks) > 1)}: {_listed(blocks)}{negative}."


def _listed(blocks: tuple[int, ...]) -> str:
    return ", ".join(str(block) for block in blocks)


def _shown_share(findings: Findings, sign: float) -> str:
    known = "" if findings.has_room(sign) else " (without steering they are already like these examples)"
    return f"{findings.moved(sign):.0%}{known}"


def _shown(value: float, error: float | None, digits: int = 2) -> str:
    uncertain = "" if error is None else f" ± {error:.{digits}f}"
    return f"{value:+.{digits}f}{uncertain}" if digits > 1 else f"{value:.{digits}f}{uncertain}"

"""Formats the evaluation as a page of tables, and checks its requirements."""

import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.steering.measure import STRENGTHS, Concept
from benchmarks.steering.scorers import SCORERS
from inference.steering.report import spearman

MIN_SHIFT = 0.5
MIN_SPEARMAN = 0.95
MIN_SPECIFICITY = 5.0
MAX_RATIO = 1.5
MIN_KEPT = 0.6
MIN_SENTIMENT = 0.4
_INTRODUCTION = Path(__file__).parent / "introduction.md"
_SAMPLES = 2
_SAMPLE_CHARACTERS = 160


def faults(concepts: list[Concept]) -> list[str]:
    """The requirements that are not met."""
    found = [f"{concept.name}: {fault}" for concept in concepts for fault in _faults(concept)]
    sentiment = next((concept for concept in concepts if concept.name == "sentiment"), None)
    if sentiment is not None and not _difference(sentiment) >= MIN_SENTIMENT:
        found.append(f"sentiment: VADER scores of generated text differ by only {_difference(sentiment):.2f}")
    return found


def _faults(concept: Concept) -> Iterable[str]:
    if not concept.report["works"]:
        yield f"the server's report: {concept.report['summary']}"
    if not (concept.shifts[1.0] >= MIN_SHIFT and concept.shifts[-1.0] <= -MIN_SHIFT):
        yield "the shift is too small"
    if not _rank(concept) >= MIN_SPEARMAN:
        yield "the effect does not always grow with the strength"
    if not _specificity(concept) >= MIN_SPECIFICITY:
        yield "random directions have a similar effect"
    if not max(concept.ratios[1.0], concept.ratios[-1.0]) <= MAX_RATIO:
        yield "the perplexity of neutral text rises too much"
    for other, kept in concept.kept.items():
        if not kept >= MIN_KEPT:
            yield f"only {kept:.0%} of its effect remains together with {other}"


def render(concepts: list[Concept], prompts: list[str], conditions: str) -> str:
    failed = faults(concepts)
    verdict = "**All requirements are met.**"
    if failed:
        verdict = "**Requirements that are not met:**\n\n" + "\n".join(f"- {fault}" for fault in failed)
    parts = [
        "# Evaluation of steering",
        _INTRODUCTION.read_text().strip(),
        conditions,
        verdict,
        "![Dose-response, fluency, specificity, off-target divergence](steering-evaluation.svg)",
        "## Held-out texts",
        _text_table(concepts),
        "## All strengths",
        "Shift of the log odds in nats per token, and ratio of the perplexities, by strength.",
        _curve_table(concepts),
        "## The server's own reports",
        _report_table(concepts),
        "## Two concepts together",
        "The share of a concept's shift at 1 that remains when another concept is added at 1.",
        _together_table(concepts),
        "## Generated text",
        f"{len(prompts)} prompts, greedy, at most 48 tokens. Scores are means over the answers.",
        _answer_table(concepts),
        _samples(concepts, prompts),
    ]
    return "\n\n".join(parts) + "\n"


def _text_table(concepts: list[Concept]) -> str:
    rows = [
        (
            concept.name,
            len(concept.held_out),
            f"{concept.shifts[1.0]:+.2f}",
            f"{concept.shifts[-1.0]:+.2f}",
            f"{_rank(concept):.2f}",
            f"{_specificity(concept):.0f}",
            f"{concept.ratios[1.0]:.2f}",
            f"{concept.ratios[-1.0]:.2f}",
            f"{concept.divergence[1.0]:.2f}",
            f"{concept.divergence[-1.0]:.2f}",
        )
        for concept in concepts
    ]
    heads = ("concept", "held-out pairs", "shift at 1", "at -1", "Spearman", "x random")
    return _table((*heads, "perplexity x at 1", "at -1", "KL at 1", "at -1"), rows)


def _curve_table(concepts: list[Concept]) -> str:
    rows = []
    for concept in concepts:
        rows.append((f"{concept.name}: shift", *(f"{concept.shifts[s]:+.2f}" for s in STRENGTHS)))
        rows.append((f"{concept.name}: perplexity", *(f"{concept.ratios[s]:.2f}" for s in STRENGTHS)))
    return _table(("", *(f"{strength:g}" for strength in STRENGTHS)), rows)


def _report_table(concepts: list[Concept]) -> str:
    rows = [
        (
            concept.name,
            concept.report["num_examples"],
            {True: "yes", False: "no", None: "cannot tell"}[concept.report["works"]],
            f"{concept.report['agreement']:.2f}",
            ", ".join(map(str, concept.report["blocks"])),
            f"{concept.report['dose']:.3f}",
            f"{concept.report['effects'][-1]['shift']:+.2f}",
            f"{concept.report['effects'][0]['shift']:+.2f}",
            f"{max(effect['perplexity_ratio'] for effect in concept.report['effects']):.2f}",
            f"{concept.report['specificity']:.0f}",
        )
        for concept in concepts
    ]
    heads = (
        "concept",
        "pairs",
        "works",
        "agreement",
        "blocks",
        "dose",
        "shift at 1",
        "at -1",
        "perplexity x",
        "x random",
    )
    return _table(heads, rows)


def _together_table(concepts: list[Concept]) -> str:
    rows = [
        (concept.name, other, f"{kept:.0%}") for concept in concepts for other, kept in concept.kept.items()
    ]
    return _table(("concept", "other concept", "remaining shift"), rows)


def _answer_table(concepts: list[Concept]) -> str:
    rows = []
    for concept in concepts:
        if concept.name in SCORERS:
            score, _ = SCORERS[concept.name]
            rows.append((concept.name, score, *(f"{_mean_score(concept, s):.3f}" for s in (-1.0, 0.0, 1.0))))
    return _table(("concept", "score", "-1", "0", "1"), rows)


def _samples(concepts: list[Concept], prompts: list[str]) -> str:
    parts = []
    for concept in concepts:
        rows = [
            (prompt, *(_clip(concept.answers[strength][i]) for strength in (-1.0, 0.0, 1.0)))
            for i, prompt in enumerate(prompts[:_SAMPLES])
        ]
        parts.append(f"### {concept.name}\n\n" + _table(("prompt", "-1", "0", "1"), rows))
    return "\n\n".join(parts)


def _rank(concept: Concept) -> float:
    return spearman([concept.shifts[strength] for strength in STRENGTHS if abs(strength) <= 1])


def _specificity(concept: Concept) -> float:
    return (concept.shifts[1.0] - concept.shifts[-1.0]) / 2 / concept.random_shift


def _mean_score(concept: Concept, strength: float) -> float:
    _, scorer = SCORERS[concept.name]
    return statistics.mean(map(scorer, concept.answers[strength]))


def _difference(concept: Concept) -> float:
    return _mean_score(concept, 1.0) - _mean_score(concept, -1.0)


def _clip(text: str) -> str:
    line = " ".join(text.replace("|", "/").split())
    return line if len(line) <= _SAMPLE_CHARACTERS else line[:_SAMPLE_CHARACTERS] + "…"


def _table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(heads), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

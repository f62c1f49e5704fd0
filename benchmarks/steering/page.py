"""Formats the evaluation as a page of tables."""

import math
from collections.abc import Iterable
from pathlib import Path

from app.schemas.reports import ConceptReport
from benchmarks.steering.compare import OURS, PROMPT, Comparison, Trial
from benchmarks.steering.measure import STRENGTHS, Evaluated
from benchmarks.steering.requirements import advantage, excesses, faults, our_best, rank, rivals, specificity
from benchmarks.steering.scorers import SCORERS

_INTRODUCTION = Path(__file__).parent / "introduction.md"
_SAMPLES = 2
_SAMPLE_CHARACTERS = 160


def render(concepts: list[Evaluated], prompts: list[str], conditions: str) -> str:
    failed = faults(concepts)
    verdict = "**All requirements are met.**"
    if failed:
        verdict = "**Requirements that are not met:**\n\n" + "\n".join(f"- {fault}" for fault in failed)
    comparisons = [comparison for concept in concepts for comparison in concept.comparisons]
    parts = [
        "# Evaluation of steering",
        _INTRODUCTION.read_text().strip(),
        conditions,
        verdict,
        "![Gain over repetition, effect on held-out pairs, neutral perplexity](steering-evaluation.svg)",
        "## At equal fluency",
        f"Gain of the score over answers without steering, to {len(prompts)} prompts. For Tiller: at the "
        "fluent strength with the largest gain, with that strength, and the cost. For the other ways: at the "
        "same cost. The prompt has the cost that it has, in brackets. ± is a standard error; that of the "
        "difference includes the errors of the costs.",
        _equal_table(comparisons),
        "Scores: " + "; ".join(f"{concept.name}: {SCORERS[concept.name][0]}" for concept in concepts) + ".",
        "The number of goals for which Tiller is ahead of each other way, or behind it, by more than one "
        "standard error:",
        _duel_table(comparisons),
        "## At the limit of fluency",
        "Gain at the best coefficient whose answers are fluent, whatever its cost; in brackets the "
        "coefficient, which for Tiller is the strength. A dash: no coefficient is fluent.",
        _limit_table(comparisons),
        _excesses(comparisons),
        "## Each strength",
        "Gain, and in brackets by how much the share of repeated trigrams rises, and the loss in nats per "
        "token.",
        _strength_table(comparisons),
        "## Held-out texts",
        _text_table(concepts),
        "## All strengths",
        "Shift of the log odds in nats per token, and ratio of neutral texts' perplexities, by strength. A "
        "strength beyond the largest one counts as the largest one.",
        _curve_table(concepts),
        "## The reports",
        _report_table(concepts),
        "## Two concepts together",
        "The share of a concept's shift at 1 that remains when another concept is added at 1.",
        _together_table(concepts),
        "## Generated text",
        _samples(comparisons, prompts),
    ]
    return "\n\n".join(parts) + "\n"


def _equal_table(comparisons: list[Comparison]) -> str:
    others = rivals(comparisons[0])
    rows = []
    for comparison in comparisons:
        ours = our_best(comparison)
        cells = [f"{comparison.gains_at(way, comparison.cost(ours)).mean():+.3f}" for way in others]
        [prompt] = comparison.of(PROMPT)
        difference, error = advantage(comparison)
        rows.append(
            (
                comparison.goal,
                f"{ours.gain:+.3f} ± {ours.error:.3f} at {comparison.sign * ours.coefficient:g}",
                f"{comparison.cost(ours):.2f}",
                *cells,
                f"{difference:+.3f} ± {error:.3f}",
                f"{prompt.gain:+.3f} ({_cost(prompt)})",
            )
        )
    return _table(("goal", OURS, "cost", *others, "Tiller - best other way", PROMPT), rows)


def _duel_table(comparisons: list[Comparison]) -> str:
    rows = []
    for way in rivals(comparisons[0]):
        duels = [advantage(comparison, way) for comparison in comparisons]
        ahead = sum(difference > error for difference, error in duels)
        behind = sum(difference < -error for difference, error in duels)
        rows.append((way, ahead, len(duels) - ahead - behind, behind))
    return _table(("other way", "Tiller is ahead", "within the error", "Tiller is behind"), rows)


def _cost(trial: Trial) -> str:
    """A trial that repeats too much has no loss, and so no exact cost."""
    return f"{trial.cost:.1f}" if math.isfinite(trial.loss) else "over 1"


def _limit_table(comparisons: list[Comparison]) -> str:
    ordered = [OURS, *rivals(comparisons[0]), PROMPT]
    rows = [(one.goal, *(_gain(one.best(way)) for way in ordered)) for one in comparisons]
    return _table(("goal", *ordered), rows)


def _excesses(comparisons: list[Comparison]) -> str:
    found = [
        f"{comparison.concept} at {excess.strength:g} ({excess.cost:.2f} ± {excess.error:.2f})"
        for comparison in comparisons
        for excess in excesses(comparison)
    ]
    return (
        f"Strengths whose cost is above the limit, 1, with its standard error: {', '.join(found) or 'none'}."
    )


def _gain(trial: Trial | None) -> str:
    if trial is None:
        return "-"
    return f"{trial.gain:+.3f} ± {trial.error:.3f} ({trial.coefficient:.2g})"


def _strength_table(comparisons: list[Comparison]) -> str:
    strengths = sorted({trial.coefficient for one in comparisons for trial in one.of(OURS)})
    rows = []
    for comparison in comparisons:
        trials = {trial.coefficient: trial for trial in comparison.of(OURS)}
        cells = [_curve_cell(trials.get(strength)) for strength in strengths]
        rows.append((comparison.goal, *cells))
    return _table(("goal", *(f"{strength:g}" for strength in strengths)), rows)


def _curve_cell(trial: Trial | None) -> str:
    return "" if trial is None else f"{trial.gain:+.3f} ({trial.repetition:+.0%}, {trial.loss:+.2f})"


def _text_table(concepts: list[Evaluated]) -> str:
    rows = [
        (
            concept.name,
            len(concept.held_out),
            f"{concept.shifts[1.0]:+.2f}",
            f"{concept.shifts[-1.0]:+.2f}",
            f"{rank(concept):.2f}",
            f"{specificity(concept):.0f}",
            f"{concept.ratios[1.0]:.2f}",
            f"{concept.ratios[-1.0]:.2f}",
            f"{concept.divergence[1.0]:.2f}",
            f"{concept.divergence[-1.0]:.2f}",
        )
        for concept in concepts
    ]
    heads = ("concept", "held-out pairs", "shift at 1", "at -1", "Spearman", "x random")
    return _table((*heads, "perplexity x at 1", "at -1", "KL at 1", "at -1"), rows)


def _curve_table(concepts: list[Evaluated]) -> str:
    rows = []
    for concept in concepts:
        rows.append((f"{concept.name}: shift", *(f"{concept.shifts[s]:+.2f}" for s in STRENGTHS)))
        rows.append((f"{concept.name}: perplexity", *(f"{concept.ratios[s]:.2f}" for s in STRENGTHS)))
    return _table(("", *(f"{strength:g}" for strength in STRENGTHS)), rows)


def _report_table(concepts: list[Evaluated]) -> str:
    rows = []
    for concept in concepts:
        report = concept.report
        moved = {effect.strength: effect for effect in report.answers}
        rows.append(
            (
                concept.name,
                {True: "yes", False: "no", None: "cannot tell"}[report.works],
                f"{report.agreement:.2f}",
                _blocks(report),
                f"{report.dose:.3f}, {report.down_dose:.3f}",
                f"{report.max_strength:g}, {-report.max_down_strength:g}",
                f"{moved[1.0].moved:.0%}, {moved[-1.0].moved:.0%}",
                f"{moved[1.0].repetition:.0%}, {moved[-1.0].repetition:.0%}",
                f"{report.effects[-1].shift:+.2f}, {report.effects[0].shift:+.2f}",
                _with_error(report.specificity, report.specificity_error),
            )
        )
    heads = ("concept", "works", "agreement", "blocks", "doses", "largest strengths", "moved")
    return _table((*heads, "repeated trigrams", "shifts", "x random"), rows)


def _blocks(report: ConceptReport) -> str:
    up, down = (", ".join(map(str, blocks)) for blocks in (report.blocks, report.down_blocks))
    return up if up == down else f"{up}; negative: {down}"


def _with_error(value: float | None, error: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" + ("" if error is None else f" ± {error:.0f}")


def _together_table(concepts: list[Evaluated]) -> str:
    rows = [
        (concept.name, other, f"{kept:.0%}") for concept in concepts for other, kept in concept.kept.items()
    ]
    return _table(("concept", "other concept", "remaining shift"), rows)


def _samples(comparisons: list[Comparison], prompts: list[str]) -> str:
    parts = []
    for comparison in comparisons:
        [trial] = [trial for trial in comparison.of(OURS) if trial.coefficient == 1.0]
        rows = [
            (prompt, _clip(comparison.plain.texts[number]), _clip(trial.answers.texts[number]))
            for number, prompt in enumerate(prompts[:_SAMPLES])
        ]
        parts.append(f"### {comparison.goal}\n\n" + _table(("prompt", "0", f"{comparison.sign}"), rows))
    return "\n\n".join(parts)


def _clip(text: str) -> str:
    line = " ".join(text.replace("|", "/").split())
    return line if len(line) <= _SAMPLE_CHARACTERS else line[:_SAMPLE_CHARACTERS] + "…"


def _table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(heads), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

"""Prints concepts and their reports."""

from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.commands.client import Json
from app.commands.concept_client import describe_state
from app.commands.output import print_json

_NO_NUMBER = "-"


def print_overview(overview: Json, as_json: bool) -> None:
    if as_json:
        print_json(overview)
        return
    table = Table("id", "state", "examples", "description")
    for card in overview["data"]:
        examples = f"{card['num_examples']}, imported" if card["imported"] else str(card["num_examples"])
        table.add_row(*map(Text, (card["id"], _states(card), examples, card["description"])))
    Console().print(table)
    for problem in overview["problems"]:
        typer.echo(f"tiller: concept file {problem['file']} is left out: {problem['reason']}", err=True)


def print_concept(concept: Json, as_json: bool) -> None:
    if as_json:
        print_json(concept)
        return
    imported = ", imported vectors" if concept["imported"] else ""
    typer.echo(f"{concept['id']}: {_states(concept)}, examples: {concept['num_examples']}{imported}")
    if "models" not in concept:
        _print_result(concept)
    for name, on_model in concept.get("models", {}).items():
        typer.echo(f"\n{name}: {describe_state(on_model)}")
        _print_result(on_model)


def _states(card: Json) -> str:
    """The concept's state, on each of several models if it differs."""
    states = {name: describe_state(on_model) for name, on_model in card.get("models", {}).items()}
    if len(set(states.values())) < 2:
        return describe_state(card)
    return ", ".join(f"{state} on {name}" for name, state in states.items())


def _print_result(on_model: Json) -> None:
    if error := on_model.get("error"):
        typer.echo(f"Failed: {error}")
    if report := on_model.get("report"):
        _print_report(report)


def _print_report(report: Json) -> None:
    if report["effects"] or report["answers"]:
        Console().print(_effects(report))
    for line in (*_facts(report), report["summary"]):
        typer.echo(line)
    for warning in report["warnings"]:
        typer.echo(f"Warning: {warning}")
    _print_samples(report["samples"])


def _effects(report: Json) -> Table:
    """One row for each strength at which something was measured."""
    table = Table(
        *("strength", "shift", "perplexity ratio", "answers moved", "their repetition", "their perplexity")
    )
    effects = {effect["strength"]: effect for effect in report["effects"]}
    answers = {answer["strength"]: answer for answer in report["answers"]}
    for strength in sorted(effects.keys() | answers.keys()):
        effect, answer = effects.get(strength, {}), answers.get(strength, {})
        table.add_row(
            _strength(strength),
            _with_error(effect.get("shift"), effect.get("shift_error"), "+.3f"),
            _number(effect.get("perplexity_ratio"), ".2f"),
            _number(answer.get("moved"), ".0%"),
            _number(answer.get("repetition"), ".0%"),
            _number(answer.get("perplexity"), ".1f"),
        )
    return table


def _facts(report: Json) -> list[str]:
    blocks, others = (", ".join(map(str, report[key])) for key in ("blocks", "down_blocks"))
    negative = "" if others == blocks else f"; with negative strengths {others}"
    return [
        f"Examples: {report['num_distinct']} of {report['num_examples']} distinct, in {report['num_groups']} "
        f"groups, {report['num_held_out']} measured, agreement {_number(report['agreement'], '.2f')}",
        f"Specificity: {_with_error(report['specificity'], report['specificity_error'], '.1f')}, "
        f"rank correlation {_number(report['spearman'], '.2f')}",
        f"Steered blocks: {blocks}{negative}; read at block {report['reading_block']}",
        f"Dose: {report['dose']:.3f} at 1, {report['down_dose']:.3f} at -1; "
        f"strengths from {-report['max_down_strength']:g} to {report['max_strength']:g} are used",
    ]


def _print_samples(samples: list[Json]) -> None:
    for question in dict.fromkeys(sample["question"] for sample in samples):
        typer.echo(f"\n{question}")
        for sample in samples:
            if sample["question"] == question:
                typer.echo(f"{_strength(sample['strength'])}: {' '.join(sample['text'].split())}")


def _strength(strength: float) -> str:
    return f"{strength:+g}" if strength else "0"


def _with_error(value: float | None, error: float | None, form: str) -> str:
    shown = _number(value, form)
    return shown if error is None else f"{shown} ± {_number(error, form.lstrip('+'))}"


def _number(value: Any, form: str) -> str:
    """The value, or a dash for a value that is unknown or not finite."""
    formatted: Callable[[Any], str] = f"{{:{form}}}".format
    return _NO_NUMBER if value is None else formatted(value)

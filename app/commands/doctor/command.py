"""The command `tiller doctor`: how the checks are shown."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.commands.doctor.finding import Finding, Found, Level
from app.commands.errors import FAILED
from app.commands.output import AsJson, print_json
from app.configuration import default_config

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}
_LEVEL_WIDTH = max(map(len, Level))


def doctor(
    config: Annotated[
        Path | None, typer.Option(help="Configuration file (YAML), the same as for `tiller serve`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check machine, configuration and model, and say how to mend what is wrong. Needs no server.

    Exit status: 0 if a server would run, with or without warnings, 1 if there is a problem.
    """
    from app.commands.doctor.examination import NAME_WIDTH, examine  # imports all that a server does

    logging.getLogger().addHandler(logging.NullHandler())  # the findings say it
    found = []
    for name, finding in examine(default_config(config)):
        found.append((name, finding))
        if not as_json:
            _show(name, NAME_WIDTH, finding)
    counts = {level: sum(finding.level is level for _, finding in found) for level in Level}
    if as_json:
        print_json(_document(found, counts))
    else:
        typer.echo(f"{_count(counts[Level.PROBLEM], 'problem')}, {_count(counts[Level.WARNING], 'warning')}")
    raise typer.Exit(FAILED if counts[Level.PROBLEM] else 0)


def _show(name: str, width: int, finding: Finding) -> None:
    """One line, and one more about how to mend it. On a terminal, they are wrapped within their column."""
    console = Console(highlight=False)
    lines = [finding.what, *([f"mend: {finding.mend}"] if finding.mend else [])]
    if not console.is_terminal:
        for number, line in enumerate(lines):
            before = (finding.level, name) if number == 0 else ("", "")
            typer.echo(f"{before[0]:<{_LEVEL_WIDTH}} {before[1]:<{width}} {line}")
        return
    row = Table.grid(padding=(0, 1, 0, 0))
    for column in (_LEVEL_WIDTH, width, None):
        row.add_column(width=column)
    row.add_row(Text(finding.level, _STYLES[finding.level]), name, Text("\n".join(lines)))
    console.print(row)


def _document(found: list[Found], counts: dict[Level, int]) -> dict[str, object]:
    return {
        "problems": counts[Level.PROBLEM],
        "warnings": counts[Level.WARNING],
        "checks": [
            {"check": name, "level": finding.level, "what": finding.what, "mend": finding.mend}
            for name, finding in found
        ],
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

"""The table of results."""

from collections.abc import Sequence

from examples.runner.execution import Result

_HEAD = ("client", "version", "result", "seconds", "note")


def render(results: Sequence[Result]) -> str:
    """A Markdown table that is also readable as it is."""
    rows = [_HEAD, *(_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _row(result: Result) -> tuple[str, ...]:
    client = result.client
    seconds = f"{result.seconds:.1f}" if result.seconds else ""
    return client.name, client.version, result.outcome, seconds, result.note.replace("|", "\\|")

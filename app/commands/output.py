"""The option `--json` of all commands that print data: one JSON document on stdout, and nothing else there.

An error is no document. It stays one line on stderr, together with the exit status.
"""

import json
import sys
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def print_json(document: object) -> None:
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower()
    typer.echo(json.dumps(document, indent=2, ensure_ascii=not encoding.startswith("utf")))

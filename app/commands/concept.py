"""`tiller concept`: manages the steering concepts of a running server. Knows only its HTTP API."""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from app.commands.client import LOCAL, Json, Token, Url, ask, connect, reporting_errors
from app.commands.concept_client import ROUTE, ConceptId, ModelName, create, path_of, present, read_concept
from app.commands.concept_new import new
from app.commands.concept_report import print_concept, print_overview
from app.commands.concept_vectors import export_vectors, import_vectors
from app.commands.output import AsJson
from app.concepts.concept import Example, digest_of

ConceptFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="YAML or JSON file with examples, and optionally name and description."
    ),
]


def concept_commands() -> typer.Typer:
    commands = typer.Typer(
        no_args_is_help=True,
        help="Create, list, show, delete, export and import the steering concepts of a running server.",
    )
    commands.command("new")(new)
    commands.command("train")(train)
    commands.command("list")(list_concepts)
    commands.command("show")(show)
    commands.command("delete")(delete)
    commands.command("export")(export_vectors)
    commands.command("import")(import_vectors)
    return commands


def train(
    file: ConceptFile,
    model: ModelName = None,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Create a concept from a file with examples, and print its report."""
    with reporting_errors():
        concept = read_concept(file) | present(model=model)
        made = create(
            connect(url, token),
            lambda client: client.post(ROUTE, json=concept, timeout=None),
            _name_of(concept),
        )
        print_concept(asyncio.run(made), as_json)


def list_concepts(
    model: ModelName = None, url: Url = LOCAL, token: Token = None, as_json: AsJson = False
) -> None:
    """List all concepts, and the concept files that cannot be used."""
    with reporting_errors():
        asked = ask(connect(url, token), "GET", ROUTE, present(model=model))
        print_overview(asyncio.run(asked), as_json)


def show(
    concept: ConceptId,
    model: ModelName = None,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Print the state and the report of a concept."""
    with reporting_errors():
        asked = ask(connect(url, token), "GET", path_of(concept), present(model=model))
        print_concept(asyncio.run(asked), as_json)


def delete(concept: ConceptId, url: Url = LOCAL, token: Token = None) -> None:
    """Delete a created concept. Shipped concepts cannot be deleted."""
    with reporting_errors():
        asyncio.run(ask(connect(url, token), "DELETE", path_of(concept)))


def _name_of(concept: Json) -> str:
    """The name in the concept's future id. Any text if the concept is not valid."""
    if concept.get("name") is not None:
        return str(concept["name"])
    try:
        return digest_of(msgspec.convert(concept["examples"], tuple[Example, ...]))
    except msgspec.ValidationError:
        return "unknown"

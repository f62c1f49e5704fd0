"""`tiller concept export` and `import`."""

import asyncio
import json
from pathlib import Path
from typing import Annotated

import httpx
import typer

from app.commands.client import LOCAL, Token, Url, connect, content_of, reporting_errors
from app.commands.concept_client import (
    ROUTE,
    ConceptId,
    ModelName,
    create,
    path_of,
    present,
    read_bytes,
    read_concept,
    write_bytes,
)
from app.commands.concept_report import print_concept
from app.commands.errors import CommandError
from app.commands.output import AsJson
from app.errors import ApiError

Name = Annotated[
    str | None, typer.Option(help="Name of the concept. Files that Tiller has exported carry one.")
]
Description = Annotated[str | None, typer.Option(help="Text for people. Default: the one in the file.")]
Examples = Annotated[
    Path | None,
    typer.Option(metavar="PAIRS", help="YAML or JSON file with examples, to measure the vectors with."),
]


def export_vectors(
    concept: ConceptId,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The safetensors file to write.")],
    model: ModelName = None,
    url: Url = LOCAL,
    token: Token = None,
) -> None:
    """Write a concept's steering vectors to a file."""
    with reporting_errors():
        write_bytes(file, asyncio.run(_download(connect(url, token), concept, present(model=model))))


def import_vectors(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A safetensors file, or a GGUF control vector.")
    ],
    name: Name = None,
    description: Description = None,
    examples: Examples = None,
    model: ModelName = None,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Create a concept from a file with steering vectors, and print its report."""
    with reporting_errors():
        content = read_bytes(file)
        if examples is not None:
            content = _with_examples(file, content, examples)
        params = present(name=name, description=description, model=model)
        print_concept(asyncio.run(_upload(connect(url, token), content, params)), as_json)


async def _download(client: httpx.AsyncClient, concept: str, params: dict[str, str]) -> bytes:
    async with client:  # The server may have to train the concept first, so httpx must not time out.
        response = await client.get(f"{path_of(concept)}/vectors", params=params, timeout=None)
    if not response.is_success:
        content_of(response)
    return response.content


async def _upload(client: httpx.AsyncClient, content: bytes, params: dict[str, str]) -> dict[str, object]:
    return await create(
        client,
        lambda client: client.post(f"{ROUTE}/import", content=content, params=params, timeout=None),
        params.get("name", "unknown"),
    )


def _with_examples(file: Path, content: bytes, pairs: Path) -> bytes:
    """The same vectors with the examples in their metadata."""
    # Only here: the import takes a quarter of a second.
    from app.concepts.vectors.rewriting import add_metadata

    examples = json.dumps(read_concept(pairs)["examples"], ensure_ascii=False)
    try:
        return add_metadata(content, examples=examples)
    except ApiError as error:
        raise CommandError(f"{file}: {error.message}") from None

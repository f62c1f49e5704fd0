"""The commands, requests and programs of the documentation run, beside a server with a tiny model.

tests/documentation/not_run.py lists what is left out. tests/test_documentation.py checks that this is all.
"""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load

from docs import http_reference
from tests.app.concepts.vectors.files import write_gguf
from tests.documentation.blocks import PAGES, blocks_of, parse
from tests.documentation.reader import Reader
from tests.documentation.runners import Runner, runner_of
from tests.e2e.conftest import MODEL, Server

FOLLOWED = [page for page in PAGES if any(runner_of(block) is Runner.SERVER for block in blocks_of(page))]
EXAMPLES = [
    {"positive": f"A lovely {thing}, thank you!", "negative": f"A {thing}. Whatever."}
    for thing in ("day", "dog", "meal", "song")
]
CAA = [
    {
        "question": f"Is {answer} right?\n\nChoices:\n(A) Yes\n(B) No",
        "answer_matching_behavior": "(A)",
        "answer_not_matching_behavior": "(B)",
    }
    for answer in ("this", "that")
]


@pytest.fixture(scope="module")
def vectors(tiny_server: Server) -> bytes:
    """A file that the server has exported."""
    body = {"name": "kind", "examples": EXAMPLES}
    assert tiny_server.post("/steering_concepts", body).status_code == 201
    exported = tiny_server.get("/steering_concepts/kind/vectors")
    assert exported.status_code == 200
    return exported.content


@pytest.fixture
def reader(tiny_server: Server, vectors: bytes, tmp_path: Path) -> Reader:
    """Has the files that the pages speak of."""
    directions = {int(name.removeprefix("direction.")): row for name, row in load(vectors).items()}
    (tmp_path / "kind.safetensors").write_bytes(vectors)
    (tmp_path / "happy.gguf").write_bytes(
        write_gguf({block: row.numpy() for block, row in directions.items() if block > 0})
    )
    torch.save(directions, tmp_path / "vectors.pt")
    (tmp_path / "my-concept.yaml").write_text(yaml.safe_dump({"name": "mine", "examples": EXAMPLES}))
    (tmp_path / "generate_dataset.json").write_text(json.dumps(CAA))
    return Reader(tmp_path, tiny_server.url)


@pytest.mark.parametrize("page", FOLLOWED)
def test_a_reader_can_follow_the_page(page: str, reader: Reader) -> None:
    for block in blocks_of(page):
        if runner_of(block) is Runner.SERVER:
            reader.follow(block)


def test_the_examples_of_the_http_reference_run(reader: Reader) -> None:
    blocks = parse("http-reference", http_reference.render(http_reference.read_document()))
    assert len(blocks) == 20
    for block in blocks:
        reader.follow(block)


def test_an_error_looks_as_the_page_shows(tiny_server: Server) -> None:
    [documented] = [block for block in blocks_of("docs/api.md") if block.first_line.startswith('{"error":')]
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "temperature": 3}
    assert tiny_server.post("/chat/completions", body).json() == json.loads(documented.text)

"""`tiller concept new` writes a file that the server and `train` can read."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from app.cli import build_commands
from app.concepts.concept import Example
from app.concepts.store import ConceptStore
from tests.app.command_line import assert_one_line

QUESTION = "Who are you?\n\nChoices:\n(A) A model: no one.\n(B) Ada"
CAA = {"question": QUESTION, "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}
ROWS = [CAA, {"positive": "– 日本 no\n", "negative": "yes"}]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "data.json"
    file.write_text(json.dumps(ROWS))
    return file


def new(*arguments: object) -> Result:
    return CliRunner().invoke(build_commands(), ["concept", "new", *map(str, arguments)])


def test_the_file_is_a_concept(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "concepts" / "honest.yaml"
    target.parent.mkdir()
    done = new("honest", "--from", source, "-o", target, "--description", "Says: no")
    assert (done.exit_code, done.stdout) == (0, f"{target}: 2 examples\n")
    [concept] = ConceptStore(target.parent, tmp_path / "none").load()
    assert (concept.id, concept.description) == ("_worker/honest", "Says: no")
    assert concept.examples == (Example("(A)", "(B)", QUESTION), Example("– 日本 no\n", "yes"))
    assert "日本" in target.read_text()


def test_the_file_is_called_like_the_concept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert new("_worker/honest", "--from", source, "--limit", 1, "--spell-out").exit_code == 1
    assert new("honest", "--from", source, "--limit", 1, "--spell-out").exit_code == 0
    content = yaml.safe_load((tmp_path / "honest.yaml").read_text())
    assert content["examples"] == [
        {"prompt": "Who are you?", "positive": "A model: no one.", "negative": "Ada"}
    ]


def test_suffixes_need_two_personas(tmp_path: Path) -> None:
    source, target = tmp_path / "suffixes.json", tmp_path / "glad.yaml"
    source.write_text('["That game"]')
    assert_one_line(new("glad", "--from", source, "-o", target), "--positive and --negative", status=2)
    done = new("glad", "--from", source, "-o", target, "--positive", "Be glad.", "--negative", "Be sad.")
    assert done.exit_code == 0
    [example] = yaml.safe_load(target.read_text())["examples"]
    assert example == {"positive": "Be glad. That game", "negative": "Be sad. That game"}


@pytest.mark.parametrize("name", ["../x", "a b", "", "x" * 65])
def test_a_name_that_no_concept_may_have_is_refused(source: Path, tmp_path: Path, name: str) -> None:
    assert_one_line(new(name, "--from", source, "-o", tmp_path / "x.yaml"), "a name has", status=2)
    assert not (tmp_path / "x.yaml").exists()


def test_an_existing_file_is_kept(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.yaml"
    target.write_text("mine")
    assert_one_line(new("x", "--from", source, "-o", target), "already exists")
    assert target.read_text() == "mine"


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"positive": "a", "negative": " \n"}, "entry 1 has a blank text"),
        ({"positive": "a", "negative": "a"}, "entry 1 has the same text"),
        ({"positive": "\ud800", "negative": "a"}, "not valid Unicode"),
        ({"positive": "a"}, "entry 1 has none of the known formats"),
    ],
)
def test_an_entry_that_the_server_would_refuse_is_named(tmp_path: Path, row: object, word: str) -> None:
    source, target = tmp_path / "data.json", tmp_path / "x.yaml"
    source.write_text(json.dumps([CAA, row]))
    assert_one_line(new("x", "--from", source, "-o", target), word)
    assert not target.exists()


def test_a_file_that_cannot_be_written_is_one_line(source: Path, tmp_path: Path) -> None:
    assert_one_line(new("x", "--from", source, "-o", tmp_path / "none" / "x.yaml"), "No such file")

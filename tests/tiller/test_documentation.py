"""Every program in the documentation that uses `tiller` runs, with a tiny model; the reference is current."""

import re
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

import tiller
from tests.documentation.blocks import PAGES
from tests.documentation.runners import python_api
from tests.tiller.conftest import PAIRS, MakeLLM

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python.md"


@pytest.fixture
def tiny(make_llm: MakeLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLM() loads a tiny model that has the concepts of the page, in a working directory of its own."""
    concepts = tmp_path / "concepts"
    concepts.mkdir()
    for name, pairs in (("sentiment", PAIRS), ("formality", PAIRS[1:])):
        examples = [{"positive": positive, "negative": negative} for positive, negative in pairs]
        (concepts / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "examples": examples}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tiller, "LLM", partial(make_llm, concepts=concepts))


@pytest.mark.parametrize("page", [page for page in PAGES if python_api(page)])
def test_the_programs_of_a_page_run_one_after_the_other(
    page: str, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {}
    for program in python_api(page):
        exec(compile(program, page, "exec"), names)
    printed = capsys.readouterr().out
    assert printed.strip()
    if page == "docs/python.md":
        assert "temperature must be at most 2, got 3" in printed
        assert "agreeing-2" in printed


def test_the_programs_of_the_page_limit_their_answers() -> None:
    calls = re.findall(r"(?:llm\.(?:chat|stream)|Request)\(.*?\)\n", PAGE.read_text(), re.DOTALL)
    assert len(calls) >= 8
    for call in calls:
        assert "max_tokens" in call, call
        assert "temperature" in call, call


def test_the_example_runs(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "steering_notebook.py"))
    assert "mean reading" in capsys.readouterr().out
    assert (tmp_path / "pirate.safetensors").is_file()


def test_the_reference_has_the_docstrings_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    reference = runpy.run_path(str(ROOT / "docs" / "reference.py"))
    assert PAGE.read_text().endswith(reference["render"]()), "run docs/reference.py"


def test_the_reference_names_each_public_name() -> None:
    text = PAGE.read_text()
    assert [name for name in tiller.__all__ if name not in text] == []
    public = [name for name in vars(tiller.LLM) if not name.startswith("_")]
    assert [name for name in public if f"### LLM.{name}\n" not in text] == []

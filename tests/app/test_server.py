"""What a server sets before it starts: limits and socket options. What it prints when it has started."""

import json
import resource
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from app import server
from app.errors import StartError
from app.main import create_app
from app.settings import ModelSettings, ServerSettings, Settings
from tests.app.fakes import CHAT_TEMPLATE, FakeEngine, model_info, write_model_directory

Limits = tuple[int, int]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[Limits]:
    """The limits of open files (soft, hard) that were set. The last one is in force."""
    history = [(1024, 4096)]

    def change(kind: int, new: Limits) -> None:
        if new[0] > new[1]:
            raise ValueError("current limit exceeds maximum limit")
        history.append(new)

    monkeypatch.setattr(resource, "getrlimit", lambda kind: history[-1])
    monkeypatch.setattr(resource, "setrlimit", change)
    return history


def test_the_limit_of_open_files_is_raised_for_the_connections(limits: list[Limits]) -> None:
    assert server.allow_connections(ServerSettings()) == 2048
    assert limits[-1] == (2048 + 512, 4096)
    assert server.allow_connections(ServerSettings(max_connections=100)) == 100
    assert limits[-1] == (2048 + 512, 4096), "the limit is never lowered"


def test_a_limit_that_the_system_refuses_is_a_one_line_error(limits: list[Limits]) -> None:
    rule = r"max_connections 4000 needs 4512 .* allows 4096 \(ulimit -n\)$"
    with pytest.raises(StartError, match=rule):
        server.allow_connections(ServerSettings(max_connections=4000))


@pytest.mark.parametrize("soft", [256, 1024])
def test_the_default_number_of_connections_is_lowered_to_what_the_system_allows(
    soft: int, limits: list[Limits], caplog: pytest.LogCaptureFixture
) -> None:
    limits.append((soft, 1024))
    fitting = server._fit_connections(Settings(server={"port": 9000}))
    assert (fitting.server.max_connections, fitting.server.port) == (512, 9000)
    assert limits[-1] == (1024, 1024)
    [warning] = caplog.messages
    assert warning.startswith("server.max_connections is 512, not 2048: ")


def test_a_configured_number_of_connections_is_never_lowered(
    limits: list[Limits], caplog: pytest.LogCaptureFixture
) -> None:
    limits.append((1024, 1024))
    with pytest.raises(StartError, match=r"2048 needs 2560 open files, and the system allows 1024"):
        server._fit_connections(Settings(server={"max_connections": 2048}))
    assert server._fit_connections(Settings(server={"max_connections": 512})).server.max_connections == 512
    assert caplog.messages == []


def test_a_limit_that_leaves_no_connection_is_an_error(limits: list[Limits]) -> None:
    limits.append((512, 512))
    with pytest.raises(StartError, match=r"allows 512 \(ulimit -n\)"):
        server.allow_connections(ServerSettings())


@pytest.mark.parametrize("seconds", [1, 60, 86_400])
def test_tcp_keepalive_finds_vanished_clients_after_about_stall_seconds(seconds: int) -> None:
    with server.bind(ServerSettings(port=0, stall_seconds=seconds)) as listener:
        idle, interval, count = (
            listener.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert min(seconds, 60_000) <= idle + count * interval <= seconds + 5


def welcome(
    template: str | None, directory: Path, capsys: pytest.CaptureFixture[str], loading: Sequence[str] = ()
) -> str:
    size = write_model_directory(directory, template).get_vocab_size()
    engines = {"tiny": FakeEngine(model_info(directory, size))}
    app = create_app(Settings(model=ModelSettings(name="tiny")), engines)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server._welcome(app.state.gateway, listener, list(loading))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    shown = capsys.readouterr().out
    assert f"serves tiny at {url} (API: {url}/docs)" in shown
    return shown


def test_the_welcome_text_has_a_command_to_try(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = welcome(CHAT_TEMPLATE, tmp_path, capsys).splitlines()[-1]
    assert command.startswith("  curl http://127.0.0.1:")
    body = json.loads(command.partition(" -d '")[2].removesuffix("'"))
    assert body["model"] == "tiny"
    assert body["max_tokens"] <= 64
    assert body["temperature"] < 0.5


def test_the_welcome_text_has_no_chat_if_the_model_cannot_chat(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = welcome(None, tmp_path, capsys)
    assert "curl" not in shown
    assert "chat" not in shown


def test_the_welcome_text_names_the_models_that_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Still loading: large, huge." in welcome(CHAT_TEMPLATE, tmp_path, capsys, ["large", "huge"])
    assert "loading" not in welcome(CHAT_TEMPLATE, tmp_path, capsys)

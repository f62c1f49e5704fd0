"""`tiller health` finds the server by its configuration. Its exit status says whether the server serves."""

import asyncio
import socket
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.cli import build_commands
from tests.app.fakes import FakeEngine


async def health(*words: str, **environment: str) -> Result:
    names = {f"TILLER_SERVER__{name.upper()}": value for name, value in environment.items()}
    return await asyncio.to_thread(CliRunner(env=names).invoke, build_commands(), ["health", *words])


def port_of(url: str) -> str:
    return url.rpartition(":")[2]


async def test_a_server_that_serves(live_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    done = await health(port=port_of(live_url))
    assert (done.exit_code, done.stdout) == (0, "ok\n")


async def test_a_server_on_all_addresses_is_asked_on_loopback(live_url: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"server: {{host: 0.0.0.0, port: {port_of(live_url)}}}")
    assert (await health("--config", str(file))).exit_code == 0


async def test_a_server_whose_engine_is_down(live_url: str, engine: FakeEngine) -> None:
    engine.available = False
    done = await health(port=port_of(live_url))
    assert done.exit_code == 1
    assert done.stderr.endswith("/health answers 503\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_no_server(host: str) -> None:
    done = await health(host=host, port="9")
    assert done.exit_code == 1
    assert done.stderr.endswith("cannot be reached: Connection refused\n")
    assert len(done.stderr.splitlines()) == 1


async def test_a_server_that_does_not_answer_or_does_not_speak_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = await health("--timeout", "0.2", port=str(silent.getsockname()[1]))
    assert (done.exit_code, "timed out" in done.stderr) == (1, True)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp.example.org\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        done = await health(port=str(other.sockets[0].getsockname()[1]))
    assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)


async def test_a_configuration_without_a_known_port_or_without_a_file(tmp_path: Path) -> None:
    assert "port is 0" in (await health(port="0")).stderr
    done = await health("--config", str(tmp_path / "none.yaml"))
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)

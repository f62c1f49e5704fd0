"""TLS: the server's certificate and key, and the errors for files that cannot be used."""

import asyncio
import json
import socket
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from typer.testing import CliRunner

from app.cli import build_commands
from app.errors import StartError
from app.http.tls import load_tls
from app.server import configure
from app.settings import ServerSettings, TlsSettings


def openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two certificates for localhost with their keys, a key with a password, and a file that is not PEM."""
    directory = tmp_path_factory.mktemp("tls")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "other"):
        files = ("-keyout", directory / f"{name}.key", "-out", directory / f"{name}.pem")
        openssl("req", "-x509", "-nodes", "-days", 2, *new_key, *subject, *files)
    encrypted = ("-aes128", "-passout", "pass:secret", "-out", directory / "encrypted.key")
    openssl("ec", "-in", directory / "server.key", *encrypted)
    (directory / "text.pem").write_text("no certificate")
    return directory


def tls(directory: Path, certificate: str, key: str) -> TlsSettings:
    return TlsSettings(certificate=str(directory / certificate), key=str(directory / key))


async def tiller_health(listener: socket.socket, directory: Path) -> tuple[int, str]:
    served = {
        "port": listener.getsockname()[1],
        "tls": tls(directory, "server.pem", "server.key").model_dump(),
    }
    runner = CliRunner(env={"TILLER_SERVER": json.dumps(served)})
    done = await asyncio.to_thread(runner.invoke, build_commands(), ["health"])
    return done.exit_code, done.output.strip()


async def test_a_server_with_a_certificate_serves_https_only(app: FastAPI, directory: Path) -> None:
    context = load_tls(tls(directory, "server.pem", "server.key"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(configure(app, ServerSettings(), context))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert await tiller_health(listener, directory) == (0, "ok")
        trusting = ssl.create_default_context(cafile=str(directory / "server.pem"))
        async with httpx.AsyncClient(verify=trusting) as client:
            assert (await client.get(f"https://{address}/health")).json() == {"status": "ok"}
            with pytest.raises(httpx.HTTPError):
                await client.get(f"http://{address}/health")
        server.should_exit = True
        await serving


@pytest.mark.parametrize(
    ("certificate", "key", "reason"),
    [
        ("none.pem", "server.key", r"server\.tls\.certificate: .*none\.pem cannot be read"),
        ("server.pem", "none.key", r"server\.tls\.key: .*none\.key cannot be read"),
        ("server.pem", "other.key", "mismatch"),
        ("server.pem", "encrypted.key", "cannot be used"),
        ("text.pem", "server.key", "cannot be used"),
        ("server.pem", "text.pem", "cannot be used"),
    ],
)
def test_unusable_files_are_a_one_line_error(
    directory: Path, certificate: str, key: str, reason: str
) -> None:
    with pytest.raises(StartError, match=reason) as error:
        load_tls(tls(directory, certificate, key))
    assert "\n" not in str(error.value)

"""Clients that read nothing, little or everything of the data sent to them, over real sockets and uvloop."""

import asyncio
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop

from app.http import stalls

SECONDS = 1.5
SENT = 8 * 2**20
"""Bytes. More than the socket buffers of both sides hold together."""


@pytest.fixture(params=["plain", "tls"])
def contexts(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple]:
    """The SSL contexts of the server and of the client. Both are None for plain TCP."""
    if request.param == "plain":
        yield None, None
        return
    key, certificate = tmp_path / "key", tmp_path / "pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-nodes",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
    ]
    files = ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *files], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=str(certificate))
    yield server, client


def is_lost(contexts: tuple, content: bytes, behave: Callable[[socket.socket], None]) -> bool:
    """Sends `content` to a client that runs `behave`. Returns whether the connection is lost by then."""
    return uvloop.run(_is_lost(contexts, content, behave))


async def _is_lost(contexts: tuple, content: bytes, behave: Callable[[socket.socket], None]) -> bool:
    transports: list[asyncio.Transport] = []

    class Sender(asyncio.Protocol):
        lost = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            transports.append(transport)
            transport.write(content)

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost = True

    sender = Sender()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: sender, "127.0.0.1", 0, ssl=contexts[0])
    watch = asyncio.create_task(stalls.cut_stalled(lambda: transports, SECONDS, tick=0.1))
    try:
        address = server.sockets[0].getsockname()
        with await asyncio.to_thread(_connect, address, contexts[1]) as connection:
            await asyncio.to_thread(behave, connection)
            await asyncio.sleep(0.3)
            assert not watch.done()
            return sender.lost
    finally:
        watch.cancel()
        for transport in transports:
            transport.abort()
        server.close()


def _connect(address: tuple, context: ssl.SSLContext | None) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131_072)
    connection.settimeout(20)
    connection.connect(address)
    return context.wrap_socket(connection, server_hostname="localhost") if context else connection


def test_a_client_that_reads_nothing_is_cut(contexts: tuple) -> None:
    received = 0

    def read_nothing(connection: socket.socket) -> None:
        nonlocal received
        time.sleep(2 * SECONDS)
        with suppress(ConnectionResetError):
            while data := connection.recv(65_536):
                received += len(data)

    assert is_lost(contexts, bytes(SENT), read_nothing)
    assert received < SENT


def test_a_client_that_reads_slowly_is_not_cut(contexts: tuple) -> None:
    def read_a_little(connection: socket.socket) -> None:
        began = time.monotonic()
        while time.monotonic() - began < 4 * SECONDS:
            time.sleep(0.05)
            assert connection.recv(32_768)

    assert not is_lost(contexts, bytes(SENT), read_a_little)


def test_a_client_that_pauses_is_not_cut(contexts: tuple) -> None:
    def pause(connection: socket.socket) -> None:
        for _ in range(3):
            time.sleep(0.3 * SECONDS)
            received = 0
            while received < 2**20:
                data = connection.recv(65_536)
                assert data
                received += len(data)

    assert not is_lost(contexts, bytes(SENT), pause)


def test_a_client_that_has_read_everything_may_be_silent(contexts: tuple) -> None:
    def listen(connection: socket.socket) -> None:
        assert connection.recv(100) == b"hello"
        time.sleep(2 * SECONDS)

    assert not is_lost(contexts, b"hello", listen)


def test_closed_connections_do_no_harm(contexts: tuple) -> None:
    assert is_lost(contexts, b"hello", lambda connection: connection.shutdown(socket.SHUT_RDWR))

"""Clients that disconnect in each state of their request, and clients that do not read."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest

from tests.e2e.conftest import MODEL, Server, metric, serving, worker_of


def request_bytes(server: Server, **fields: object) -> bytes:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 30_000,
        "logit_bias": {"1": -100},
        **fields,
    }
    content = json.dumps(body).encode()
    head = "POST /chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def address(server: Server) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


@contextmanager
def client(server: Server, *, buffer: int = 131_072, **fields: object) -> Iterator[socket.socket]:
    """Sends a request, and disconnects at the end of the context. `buffer`: size of the receive buffer."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(30)
        connection.connect(address(server))
        connection.sendall(request_bytes(server, **fields))
        yield connection


def read_until(connection: socket.socket, text: bytes) -> None:
    read = b""
    while text not in read:
        received = connection.recv(65536)
        assert received, read
        read += received


def is_admitted(server: Server) -> bool:
    """Whether the server takes one more request. It refuses the request at once if there is no slot."""
    with client(server, stream=True, max_tokens=1) as connection:
        connection.settimeout(0.3)
        try:
            head = connection.recv(4096)
        except TimeoutError:  # The request waits.
            return True
    assert b" 200 " in head or b" 503 " in head, head
    return b" 200 " in head


def sequences(server: Server) -> float:
    """Number of sequences in the engine, running or waiting. Up to half a second old."""
    return sum(metric(server, f"tiller_sequences_{state}") for state in ("running", "waiting"))


@pytest.fixture(scope="module")
def narrow(tiny_config: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server in which one request may run and one may wait."""
    engine = {"kv_cache_gib": 0.1, "max_running": 1, "max_queued": 1, "max_batch_tokens": 32}
    with serving({**tiny_config, "engine": engine}, tmp_path_factory.mktemp("narrow")) as server:
        yield server


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("leaving", ["generating", "reading its prompt", "waiting"])
def test_a_disconnect_frees_the_slot_within_a_second(narrow: Server, leaving: str, streamed: bool) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 30_000}]}
    first = long if leaving == "reading its prompt" else {}
    with client(narrow, stream=True, **first) as runs:
        while not sequences(narrow):
            time.sleep(0.02)
        if leaving == "generating":
            read_until(runs, b'"content":""')
        with client(narrow, stream=streamed) as waits:
            time.sleep(0.3)
            assert not is_admitted(narrow), "both slots are taken"
            (waits if leaving == "waiting" else runs).close()
            disconnected = time.monotonic()
            while not is_admitted(narrow):
                assert time.monotonic() - disconnected < 1.0
                time.sleep(0.02)
    while sequences(narrow):
        time.sleep(0.02)


@pytest.fixture(scope="module")
def wide(tiny_config: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = {**tiny_config, "server": {"stall_seconds": 4}}
    with serving(config, tmp_path_factory.mktemp("wide")) as server:
        yield server


async def vanish(server: Server, number: int) -> None:
    _, writer = await asyncio.open_connection(*address(server))
    writer.write(request_bytes(server, stream=number % 2 == 0, n=1 + number % 3))
    await asyncio.sleep(0.5)
    writer.transport.abort()


async def test_the_server_answers_after_two_hundred_clients_have_vanished(wide: Server) -> None:
    await asyncio.gather(*(vanish(wide, number) for number in range(200)))
    async with httpx.AsyncClient(base_url=wide.url, timeout=30) as http:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
        began = time.monotonic()
        answer = await http.post("/chat/completions", json=body)
        assert answer.json()["usage"]["completion_tokens"] == 3
        assert time.monotonic() - began < 3.0, "the abandoned requests still run"
    while sequences(wide):  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.02)


async def leave_at_once(server: Server, number: int) -> None:
    """Leaves 0 to 12 milliseconds after the request is sent: every other client closes, the rest reset."""
    _, writer = await asyncio.open_connection(*address(server))
    writer.write(request_bytes(server, stream=number % 3 == 0, max_tokens=3, n=1 + number % 2))
    await asyncio.sleep(number % 25 * 0.0005)
    if number % 2:
        writer.transport.abort()
    writer.close()


async def test_clients_that_leave_during_the_submission_do_not_end_the_worker(wide: Server) -> None:
    worker = worker_of(wide)
    for first in range(0, 600, 4):
        await asyncio.gather(*(leave_at_once(wide, number) for number in range(first, first + 4)))
    async with asyncio.timeout(20):
        while sequences(wide) or metric(wide, "tiller_running"):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.1)
    assert metric(wide, "tiller_worker_restarts_total") == 0
    assert worker_of(wide) == worker
    assert wide.chat("Hello", max_tokens=3)["usage"]["completion_tokens"] == 3


def test_the_server_disconnects_a_client_that_reads_nothing(wide: Server) -> None:
    with client(wide, buffer=4096, stream=True, top_logprobs=20, max_tokens=90_000) as connection:
        while not sequences(wide):
            time.sleep(0.02)
        began = time.monotonic()
        while sequences(wide):
            assert time.monotonic() - began < 60.0, "the request still runs"
            time.sleep(0.1)
        received = b""
        with suppress(ConnectionError):
            while data := connection.recv(65536):
                received += data
        assert b"[DONE]" not in received


def test_the_server_waits_for_a_client_that_reads_slowly(wide: Server) -> None:
    with client(wide, stream=True, max_tokens=600, top_logprobs=20) as connection:
        for _ in range(20):
            time.sleep(0.5)
            assert connection.recv(32_768)
        read_until(connection, b"[DONE]")

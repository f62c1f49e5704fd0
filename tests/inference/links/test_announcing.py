"""A worker announces itself to a registry, over real sockets."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from inference.interface import registry
from inference.interface.registry import Announce, Heard, Refused, Withdraw
from inference.links import announcing
from inference.links.announcing import Announcement, Announcer

ANNOUNCE = Announce("1", "m", "tcp://host:1")


@pytest.fixture
def socket() -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        yield socket


@pytest.fixture
def announcer(tmp_path: Path) -> Iterator[Announcer]:
    announcer = Announcer(Announcement(f"ipc://{tmp_path}/registry", None, ANNOUNCE))
    announcer.start()
    yield announcer
    announcer.leave()


def receive(socket: zmq.Socket[bytes]) -> tuple[bytes, object]:
    assert socket.poll(5000)
    member, frame = socket.recv_multipart()
    return member, registry.decode_message(frame)


def test_a_worker_announces_itself_until_it_leaves(
    socket: zmq.Socket[bytes], announcer: Announcer, tmp_path: Path
) -> None:
    socket.bind(f"ipc://{tmp_path}/registry")
    for _ in range(2):
        member, message = receive(socket)
        assert message == ANNOUNCE
        socket.send_multipart([member, registry.encode(Heard())])
    announcer.leave()
    assert receive(socket) == (member, Withdraw())


def test_what_is_wrong_is_logged(
    socket: zmq.Socket[bytes],
    announcer: Announcer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(announcing, "_UNHEARD_PULSES", 1)
    wait_for(caplog, "does not answer: nothing is there, or it has another worker key")
    socket.bind(f"ipc://{tmp_path}/registry")
    member, _ = receive(socket)
    socket.send_multipart([member, registry.encode(Refused("another version"))])
    wait_for(caplog, "the registry refuses this worker: another version")
    socket.send_multipart([member, b"\xc1"])
    wait_for(caplog, "the registry refuses this worker: it speaks another protocol")
    with caplog.at_level(logging.INFO):
        socket.send_multipart([member, registry.encode(Heard())])
        wait_for(caplog, f"the registry at ipc://{tmp_path}/registry answers")


def wait_for(caplog: pytest.LogCaptureFixture, text: str) -> None:
    deadline = time.monotonic() + 10
    while text not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.02)

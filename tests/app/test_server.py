"""What a server needs of its system before it starts."""

import resource
import socket

import pytest

from app import server
from app.errors import StartError
from app.settings import ServerSettings

Limits = tuple[int, int]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[Limits]:
    """Of open files; the last is in force."""
    known = [(1024, 4096)]

    def change(kind: int, new: Limits) -> None:
        if new[0] > new[1]:
            raise ValueError("current limit exceeds maximum limit")
        known.append(new)

    monkeypatch.setattr(resource, "getrlimit", lambda kind: known[-1])
    monkeypatch.setattr(resource, "setrlimit", change)
    return known


def test_so_many_files_are_allowed_as_there_may_be_connections_and_more(limits: list[Limits]) -> None:
    server._allow_files(2048)
    assert limits[-1] == (2048 + 512, 4096)
    server._allow_files(100)
    assert limits[-1] == (2048 + 512, 4096), "what is allowed stays so"


def test_where_the_system_does_not_allow_them_that_is_one_line(limits: list[Limits]) -> None:
    with pytest.raises(StartError, match=r"max_connections 4000 needs 4512 .* allows 4096 \(ulimit -n\)$"):
        server._allow_files(4000)
    assert len(limits) == 1


@pytest.mark.parametrize("seconds", [1, 60, 86_400])
def test_clients_that_vanish_are_noticed_after_about_as_long_as_they_may_stall(seconds: int) -> None:
    with server._bind(ServerSettings(port=0, stall_seconds=seconds)) as listener:
        idle, interval, count = (
            listener.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert min(seconds, 60_000) <= idle + count * interval <= seconds + 5

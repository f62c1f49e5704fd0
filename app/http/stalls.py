"""Cuts connections whose client takes nothing of what is sent to it. Knows no HTTP.

Linux's own TCP_USER_TIMEOUT would also cut clients that do read: it goes on counting while they make room
for less than what is next to be sent, and that is up to 64 KB where client and server are on one machine.
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

_TCP_INFO = struct.Struct("=24xI92xQ16xI")
"""Of Linux's `struct tcp_info` (linux/tcp.h): segments in flight, bytes acknowledged, bytes not sent yet."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: what is left is not sent by the system either."""


class _Progress(NamedTuple):
    acked: int
    """Bytes that the client's system has ever taken."""
    silent: float
    """Seconds since it took any, or there was nothing to take."""


async def cut_stalled(
    transports: Callable[[], Iterable[asyncio.Transport]], seconds: float, tick: float = 1.0
) -> None:
    """Of those that there are at a time, cuts each that stands still for `seconds`; never returns.

    Does nothing on other systems than Linux, which do not tell. Time is counted in turns of the event loop,
    so that a stop of the whole machine is no silence of a client's.
    """
    if sys.platform != "linux":
        return
    watched: dict[asyncio.Transport, _Progress] = {}
    while True:
        await asyncio.sleep(tick)
        watched = {transport: _look(transport, watched.get(transport), tick) for transport in transports()}
        for transport, progress in watched.items():
            if progress.silent >= seconds:
                _cut(transport)


def _look(transport: asyncio.Transport, before: _Progress | None, tick: float) -> _Progress:
    if (info := _tcp_info(transport)) is None:
        return _Progress(0, 0.0)
    unacked, acked, unsent = info
    waits = unacked or unsent or transport.get_write_buffer_size()
    if before is None or acked != before.acked or not waits:
        return _Progress(acked, 0.0)
    return _Progress(acked, before.silent + tick)


def _tcp_info(transport: asyncio.Transport) -> tuple[int, int, int] | None:
    """As in _TCP_INFO. None: it is closed, and its end is on its way."""
    if connection := transport.get_extra_info("socket"):
        with suppress(OSError, ValueError):
            return _TCP_INFO.unpack(
                connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            )
    return None


def _cut(transport: asyncio.Transport) -> None:
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()

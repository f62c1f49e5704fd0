"""Resets connections whose client has stopped reading. Knows no HTTP.

Linux's TCP_USER_TIMEOUT does not fit: it would also cut clients that read slowly. It counts on while the
client's receive window is smaller than the next segment, which has up to 64 KB on the loopback interface.
"""

import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

_TCP_INFO = struct.Struct("=24xI92xQ16xI")
"""From `struct tcp_info` (linux/tcp.h): unacknowledged segments, acknowledged bytes, bytes not sent yet."""
_RESET = struct.pack("ii", 1, 0)
"""Value of SO_LINGER: at close, the system resets the connection and drops the unsent data."""


class _Progress(NamedTuple):
    acked: int
    """Bytes that the client's system has acknowledged since the connection began."""
    silent: float
    """Seconds without a new acknowledgement while data was waiting."""


async def cut_stalled(
    transports: Callable[[], Iterable[asyncio.Transport]], seconds: float, tick: float = 1.0
) -> None:
    """Resets each of `transports()` whose client acknowledges nothing for `seconds`. Never returns on Linux.

    On other systems it returns at once, because they do not report the acknowledged bytes. Every `tick`
    seconds it looks at all transports. Each look counts as `tick` seconds, however long it really took, so
    that a suspended machine does not make its clients look stalled.
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
    """The fields of _TCP_INFO. None if the connection is closed already."""
    if connection := transport.get_extra_info("socket"):
        with suppress(OSError, ValueError):
            return _TCP_INFO.unpack(
                connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            )
    return None


def _cut(transport: asyncio.Transport) -> None:
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()

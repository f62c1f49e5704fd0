"""Watches a connection that ZeroMQ keeps up by itself: whether it stands, and why not. Knows no messages."""

from typing import Any

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

_REFUSED = "it is refused there: both sides need the same worker key"
_PROBLEMS = {
    zmq.Event.CONNECT_RETRIED: "nothing answers at this address",
    zmq.Event.DISCONNECTED: "the connection is lost",
    zmq.Event.HANDSHAKE_FAILED_AUTH: _REFUSED,
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: _REFUSED,
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: _REFUSED,
}


class ConnectionWatch:
    """The state of the only connection of a DEALER socket."""

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        """Call it before the socket connects. `close` ends it."""
        self._socket = socket
        self._monitor: Any = socket.get_monitor_socket()
        self.count = 0
        """How often the connection was made."""
        self.problem = ""
        """Why there is no connection. Empty if there is one, or if nothing is known yet."""

    async def next(self) -> None:
        """Waits for something to happen to the connection."""
        event = zmq.Event(parse_monitor_message(await self._monitor.recv_multipart())["event"])
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self.count += 1
            self.problem = ""
        elif event in _PROBLEMS and self.problem != _REFUSED:
            # After a failed handshake, ZeroMQ closes the connection and tries again, which says less.
            self.problem = _PROBLEMS[event]

    async def catch_up(self) -> None:
        """Takes note of all that has happened up to now."""
        while await self._monitor.poll(0):
            await self.next()

    async def wait_for_loss(self) -> None:
        """Returns once the current connection does not stand any more."""
        count = self.count
        while not self.problem and self.count == count:
            await self.next()

    def close(self) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)

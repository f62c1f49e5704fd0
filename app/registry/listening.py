"""The registry's socket."""

from collections.abc import Iterator
from contextlib import contextmanager

import zmq

from app.errors import StartError
from inference.interface.curve import accepting_only
from inference.interface.registry import PULSE_SECONDS, SILENT_SECONDS
from inference.interface.worker_key import WorkerKey


@contextmanager
def listening(address: str, key: WorkerKey | None) -> Iterator[zmq.Socket[bytes]]:
    """A bound ROUTER socket. `key`: None without encryption. Raises StartError if it cannot be bound."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.set_hwm(0)
        socket.linger = 0
        socket.ipv6 = True
        # A member's host may be gone without closing its connections.
        socket.heartbeat_ivl = round(PULSE_SECONDS * 1000)
        socket.heartbeat_timeout = round(SILENT_SECONDS * 1000)
        socket.router_mandatory = True  # so that an answer to a member that is gone raises an error
        socket.router_handover = True  # a gateway that connects again keeps its identity
        if key is None:
            _bind(socket, address)
            yield socket
            return
        with accepting_only(socket, key):
            _bind(socket, address)
            yield socket


def _bind(socket: zmq.Socket[bytes], address: str) -> None:
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise StartError(f"{address}: {error.strerror}") from None

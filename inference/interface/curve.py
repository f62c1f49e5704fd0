"""Lets only those connect that have the worker key."""

from collections.abc import Iterator
from contextlib import contextmanager

import zmq
from zmq.auth.thread import ThreadAuthenticator

from inference.interface.worker_key import WorkerKey


@contextmanager
def accepting_only(socket: zmq.Socket[bytes], key: WorkerKey) -> Iterator[None]:
    """Call it before the socket is bound. Meanwhile a thread checks the key of each new connection."""
    authenticator = ThreadAuthenticator(socket.context)
    authenticator.start()
    try:
        authenticator.configure_curve_callback("*", _OneKey(key.public))
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = key.public, key.secret
        yield
    finally:
        authenticator.stop()


class _OneKey:
    """What the authenticator asks whether a client's public key is known."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:  # noqa: ARG002
        return key == self._public

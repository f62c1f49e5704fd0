"""Tells a registry, from a thread of its own, that this worker serves."""

import logging
import threading
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import zmq

from inference.interface import registry
from inference.interface.registry import PULSE_SECONDS, SILENT_SECONDS, Announce, Heard, Refused, Withdraw
from inference.interface.worker_key import WorkerKey

_log = logging.getLogger("tiller.worker")

_UNHEARD_PULSES = 5
"""After so many announcements without an answer, the log says so."""


@dataclass(frozen=True)
class Announcement:
    registry: str
    """Address of the registry."""
    key: WorkerKey | None
    """None: without encryption."""
    announce: Announce


class Announcer:
    """Announces a worker each PULSE_SECONDS, until it leaves. A step of the engine does not delay this."""

    def __init__(self, announcement: Announcement) -> None:
        self._announcement = announcement
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)
        self._unheard = 0

    def start(self) -> None:
        self._thread.start()

    def leave(self) -> None:
        """The worker takes no new requests. Returns at once, and may be called in a signal handler."""
        self._leaving.set()

    def _run(self) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            self._connect(socket)
            while not self._leaving.is_set():
                self._pulse(socket)
                self._hear(socket)
            self._send(socket, Withdraw())

    def _connect(self, socket: zmq.Socket[bytes]) -> None:
        socket.linger = 1000
        socket.ipv6 = True
        socket.immediate = True  # nothing waits for a later connection
        socket.heartbeat_ivl = round(PULSE_SECONDS * 1000)
        socket.heartbeat_timeout = round(SILENT_SECONDS * 1000)
        if key := self._announcement.key:
            socket.curve_publickey, socket.curve_secretkey = key.public, key.secret
            socket.curve_serverkey = key.public
        socket.connect(self._announcement.registry)

    def _pulse(self, socket: zmq.Socket[bytes]) -> None:
        socket.poll(
            round(PULSE_SECONDS * 1000), zmq.POLLOUT
        )  # for the first one: until there is a connection
        self._send(socket, self._announcement.announce)
        self._unheard += 1
        if self._unheard == _UNHEARD_PULSES:
            reason = "nothing is there, or it has another worker key"
            _log.warning("the registry at %s does not answer: %s", self._announcement.registry, reason)

    def _hear(self, socket: zmq.Socket[bytes]) -> None:
        """Takes the answers that come within PULSE_SECONDS, or until the worker leaves."""
        for _ in range(round(PULSE_SECONDS * 10)):
            while socket.poll(100):
                self._take(socket.recv())
            if self._leaving.is_set():
                return

    def _take(self, frame: bytes) -> None:
        try:
            answer = registry.decode_answer(frame)
        except msgspec.DecodeError:
            answer = Refused("it speaks another protocol")
        if isinstance(answer, Heard):
            if self._unheard >= _UNHEARD_PULSES:
                _log.info("the registry at %s answers", self._announcement.registry)
            self._unheard = 0
        elif isinstance(answer, Refused):
            _log.error("the registry refuses this worker: %s", answer.message)

    def _send(self, socket: zmq.Socket[bytes], message: Announce | Withdraw) -> None:
        with suppress(zmq.Again):  # there is no connection now
            socket.send(registry.encode(message), zmq.NOBLOCK)

"""The link to any number of gateways, perhaps on other hosts, that connect to this worker."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import zmq

from inference.interface import protocol
from inference.interface.concepts import ForgetConcept, TrainingState, TrainingUpdate
from inference.interface.protocol import (
    SILENT_SECONDS,
    Command,
    FetchFile,
    FileContent,
    Hello,
    Leaving,
    Ping,
    Report,
    Started,
    StartFailed,
    StepReport,
)
from inference.interface.requests import GenerationRequest, RefusalCode, SubmitResult
from inference.links.routing import Gateway, Routes

_log = logging.getLogger("tiller.worker")


class GatewayLinks:
    """Implements Link on a ROUTER socket.

    Each gateway gets only the reports on its own commands. The requests of a gateway that is lost end.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        expected: Hello,
        started: Started,
        files: Mapping[str, Path],
        is_active: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`started`: the answer to each gateway that says `expected`.

        `files`: by SHA-256, those in `started`. `is_active`: whether the engine still has a request with this
        id. `clock`: seconds, never set back.
        """
        socket.router_mandatory = True  # so that a report to a gateway that is gone raises an error
        self._socket = socket
        self._expected = expected
        self._started = started
        self._files = files
        self._clock = clock
        self._routes = Routes(is_active)
        self._heard: dict[Gateway, float] = {}
        """When each gateway was heard last."""
        self._arrived: deque[Command] = deque()

    def poll(self, milliseconds: int) -> bool:
        while self._socket.poll(0 if self._arrived else milliseconds):
            self._take()
            milliseconds = 0
        self._drop_silent()
        return bool(self._arrived)

    def receive(self) -> Command:
        return self._arrived.popleft()

    def send(self, report: StepReport) -> None:
        for gateway, part in self._routes.split(report, list(self._heard)):
            self._send(gateway, part)

    def leave(self) -> None:
        for gateway in list(self._heard):
            self._send(gateway, Leaving())

    def _take(self) -> None:
        """Takes one message. Commands go to `_arrived`; the others are answered here."""
        gateway, frame = self._socket.recv_multipart()
        try:
            message = protocol.decode_message(frame)
        except msgspec.DecodeError as error:
            _log.error("a gateway has sent a message that cannot be read: %s", error)
            self._drop(gateway, "it speaks another protocol")
            return
        if isinstance(message, Hello):
            self._greet(gateway, message)
        elif gateway not in self._heard:  # it was dropped while it was silent
            self._reply(gateway, StartFailed("the worker has not heard this gateway for too long"))
        else:
            self._heard[gateway] = self._clock()
            self._handle(gateway, message)

    def _greet(self, gateway: Gateway, hello: Hello) -> None:
        if reason := self._mismatch(hello):
            _log.warning("refusing a gateway: %s", reason)
            self._reply(gateway, StartFailed(reason))
            return
        _log.info("a gateway has connected")
        self._heard[gateway] = self._clock()
        self._send(gateway, self._started)

    def _mismatch(self, hello: Hello) -> str | None:
        """Why a gateway cannot use this worker."""
        expected = self._expected
        if hello.version != expected.version:
            return f"the worker has version {expected.version}, and the gateway {hello.version}"
        if hello.model != expected.model:
            return f"the worker has the model {expected.model}, and the gateway wants {hello.model}"
        return None

    def _handle(self, gateway: Gateway, message: Command | Ping | FetchFile) -> None:
        match message:
            case Ping():
                pass
            case FetchFile():
                self._send_file(gateway, message.sha256)
            case GenerationRequest() if self._routes.knows(message.request_id):
                refused = SubmitResult(
                    message.request_id, RefusalCode.INTERNAL, "request_id is already in use"
                )
                self._send(gateway, StepReport(submit_results=[refused]))
            case _:
                if isinstance(message, ForgetConcept):
                    self._tell_of_deletion(gateway, message.concept)
                self._routes.add(gateway, message)
                self._arrived.append(message)

    def _send_file(self, gateway: Gateway, sha256: str) -> None:
        if file := self._files.get(sha256):
            self._send(gateway, FileContent(sha256, file.read_bytes()))
        else:
            self._drop(gateway, "it asks for a file that the model does not have")

    def _tell_of_deletion(self, by: Gateway, concept: str) -> None:
        """Ends the waiting of other gateways for a training that one of them ends."""
        update = TrainingUpdate(concept, TrainingState.FAILED, detail="it was deleted")
        for gateway in self._routes.waiting_for(concept) - {by}:
            self._send(gateway, StepReport(training=[update]))

    def _drop_silent(self) -> None:
        """Call it when no message is waiting, so that no gateway is silent only because it was not heard."""
        now = self._clock()
        for gateway, heard in list(self._heard.items()):
            if now - heard > SILENT_SECONDS:
                self._drop(gateway, f"it has sent nothing for {now - heard:.0f} seconds")

    def _drop(self, gateway: Gateway, reason: str) -> None:
        """Forgets a gateway, and tells it if it is still there."""
        self._forget(gateway, reason)
        self._reply(gateway, StartFailed(f"the worker has dropped this gateway: {reason}"))

    def _send(self, gateway: Gateway, report: Report) -> None:
        if not self._reply(gateway, report):
            self._forget(gateway, "it has closed the connection")

    def _forget(self, gateway: Gateway, reason: str) -> None:
        """Ends the gateway's requests."""
        if self._heard.pop(gateway, None) is not None:
            _log.warning("a gateway is gone, so its requests end: %s", reason)
            self._arrived.extend(self._routes.leave(gateway))

    def _reply(self, gateway: Gateway, report: Report) -> bool:
        """Sends to a gateway that may be gone. Returns whether it is there."""
        try:
            self._socket.send_multipart([gateway, protocol.encode(report)])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

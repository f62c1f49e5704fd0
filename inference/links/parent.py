"""The link to the one gateway that has started this worker."""

import zmq

from inference.interface import protocol
from inference.interface.protocol import Command, StepReport


class ParentLink:
    """Implements Link on a PAIR socket."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket

    def poll(self, milliseconds: int) -> bool:
        return bool(self._socket.poll(milliseconds))

    def receive(self) -> Command:
        return protocol.decode_command(self._socket.recv())

    def send(self, report: StepReport) -> None:
        self._socket.send(protocol.encode(report))

    def leave(self) -> None:
        """Nothing to do: the gateway itself has ended this worker."""

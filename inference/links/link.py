"""What the worker's loop needs of its link to gateways."""

from typing import Protocol

from inference.interface.protocol import Command, StepReport


class Link(Protocol):
    def poll(self, milliseconds: int) -> bool:
        """Whether a command is here. Waits for one, up to this time."""

    def receive(self) -> Command:
        """The next command. Call it only after `poll` has returned True."""

    def send(self, report: StepReport) -> None:
        """Sends each part of the report to the gateway that it is for. Never blocks."""

    def leave(self) -> None:
        """Tells the gateways that this worker takes no new requests."""

"""The key that gateways and workers share. With it, ZeroMQ encrypts their connections and refuses others.

The mechanism is CURVE, https://rfc.zeromq.org/spec/26. All of them have the same key pair, so each knows the
public key of the others.
"""

from dataclasses import dataclass
from pathlib import Path

import zmq

from inference.interface.config import ConfigError
from inference.interface.files import write_atomically


@dataclass(frozen=True)
class WorkerKey:
    """The two halves of the pair, in Z85 as ZeroMQ writes them."""

    public: bytes
    secret: bytes


def create_key(file: Path) -> None:
    """Writes a new key. Only this user can read the file. Raises OSError."""
    _, secret = zmq.curve_keypair()
    write_atomically(file, secret + b"\n")


def read_key(file: Path) -> WorkerKey:
    """Raises ConfigError, with one line for the operator."""
    try:
        secret = file.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"the worker key {file} cannot be read: {error.strerror}") from None
    try:
        return WorkerKey(zmq.curve_public(secret), secret)
    except (zmq.ZMQError, ValueError):
        raise ConfigError(
            f"{file} has no worker key; `tiller worker new-key FILE` makes one for all gateways and workers"
        ) from None

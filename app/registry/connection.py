"""Connects to a registry, and asks it for its status."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import zmq
import zmq.asyncio

from app.errors import StartError
from app.workers.connection_watch import ConnectionWatch
from inference.interface import registry
from inference.interface.registry import PULSE_SECONDS, AskStatus, Status
from inference.interface.worker_key import WorkerKey


@asynccontextmanager
async def connecting(
    address: str, key: WorkerKey | None, identity: bytes
) -> AsyncIterator[tuple[zmq.asyncio.Socket, ConnectionWatch]]:
    """A DEALER socket that connects to a registry, and what watches its connection."""
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.set_hwm(0)
        socket.linger = 0
        socket.ipv6 = True
        socket.immediate = True  # nothing waits for a later connection
        socket.identity = identity
        socket.heartbeat_ivl = round(PULSE_SECONDS * 1000)
        socket.heartbeat_timeout = round(registry.SILENT_SECONDS * 1000)
        if key is not None:
            socket.curve_publickey, socket.curve_secretkey = key.public, key.secret
            socket.curve_serverkey = key.public
        watch = ConnectionWatch(socket)
        socket.connect(address)
        try:
            yield socket, watch
        finally:
            watch.close()


async def status(address: str, key: WorkerKey | None, seconds: float = 5.0) -> Status:
    """Asks a registry for its status. Raises StartError if it does not answer in this time."""
    async with connecting(address, key, uuid.uuid4().bytes) as (socket, watch):
        try:
            async with asyncio.timeout(seconds):
                while not watch.count:
                    await watch.next()
                await socket.send(registry.encode(AskStatus(0)))
                answer = registry.decode_answer(await socket.recv())
        except TimeoutError:
            reason = watch.problem or "it does not answer"
            raise StartError(f"the registry at {address} gives no status: {reason}") from None
        except msgspec.DecodeError:
            raise StartError(f"the registry at {address} speaks another protocol") from None
    if isinstance(answer, Status):
        return answer
    raise StartError(f"the registry at {address} gives no status")

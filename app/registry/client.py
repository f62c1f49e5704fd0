"""A server's connection to the registry. inference/interface/registry.py describes the messages."""

import asyncio
import itertools
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio

from app import __version__
from app.errors import ApiError, EngineUnavailable, ErrorCode, RateLimited, StartError
from app.workers.connection_watch import ConnectionWatch
from inference.interface import registry
from inference.interface.registry import (
    PULSE_SECONDS,
    Answer,
    AskStatus,
    Begin,
    Direction,
    Done,
    GetDirection,
    Join,
    Joined,
    Loads,
    Message,
    ModelLoad,
    Noted,
    Refused,
    Remove,
    Removed,
    Status,
    Store,
    Stored,
    Take,
    Workers,
)
from inference.interface.worker_key import WorkerKey

_log = logging.getLogger(__name__)

_ANSWER_SECONDS = 5.0
_LINE_SECONDS = 10.0
"""Between two lines in the log about a registry that does not answer."""

Question = Store | Remove | Begin | Take | GetDirection


class Listener(Protocol):
    """Hears of what other servers do."""

    async def stored(self, name: str, content: bytes) -> None:
        """There is a concept, in a file of this name."""

    async def removed(self, concept: str) -> None:
        """The concept with this id was deleted."""

    async def joined(self, concepts: list[str]) -> None:
        """These are the ids of all concepts."""


class RegistryClient:
    """Joins the registry, and joins again whenever the connection is lost."""

    def __init__(
        self, address: str, key: WorkerKey | None, loads: Callable[[], dict[str, ModelLoad]]
    ) -> None:
        """`address`: `tcp://HOST:PORT` or `ipc://PATH`. `key`: None without encryption.

        `loads`: of the models, for the status.
        """
        self.address = address
        self.url = ""
        """Where clients reach this server, for the status."""
        self.listener: Listener | None = None
        self.joined = False
        """Whether the registry answers, and all its concepts are known."""
        self.gateways = 1
        """Number of servers that share this registry, as far as is known."""
        self.requests: Counter[str] = Counter()
        """Account -> number of requests in progress that the registry has counted."""
        self._key = key
        self._loads = loads
        self._identity = uuid.uuid4().bytes
        self._numbers = itertools.count(1)
        self._socket: zmq.asyncio.Socket | None = None
        self._waiting: dict[int, asyncio.Future[Done | Direction]] = {}
        self._workers: dict[str, list[str]] = {}
        self._followers: dict[str, list[Callable[[list[str]], None]]] = {}

    @contextmanager
    def following(self, model: str, follower: Callable[[list[str]], None]) -> Iterator[None]:
        """Calls `follower` with a model's addresses: now if some are known, and whenever they change."""
        followers = self._followers.setdefault(model, [])
        followers.append(follower)
        if self._workers.get(model):
            follower(self._workers[model])
        try:
            yield
        finally:
            followers.remove(follower)

    async def ask(self, make: Callable[[int], Question]) -> Done | Direction:
        """Sends what `make` returns for a new request id. Returns the answer.

        Raises the answer's error, or UNAVAILABLE if the registry does not answer.
        """
        number = next(self._numbers)
        question = make(number)
        if not self.joined:
            raise _unavailable()
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self.tell(question)
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer: Done | Direction = await waiting
        except TimeoutError:
            raise _unavailable() from None
        finally:
            del self._waiting[number]
        if isinstance(answer, Done) and answer.code:
            raise _error(answer)
        return answer

    def tell(self, message: Message) -> None:
        """Sends a message. Has no effect without a connection."""
        if self._socket is not None:
            # It is sent now, or never if the connection is lost.
            sending = asyncio.ensure_future(self._socket.send(registry.encode(message), zmq.NOBLOCK))
            sending.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def run(self) -> None:
        """Keeps the connection up until it is cancelled."""
        while True:
            async with connecting(self.address, self._key, self._identity) as (socket, watch):
                self._socket = socket
                try:
                    await self._serve(socket, watch)
                    self._complain_of_loss()
                finally:
                    self._lose()

    async def _serve(self, socket: zmq.asyncio.Socket, watch: ConnectionWatch) -> None:
        """Serves one connection to its end."""
        complaining = asyncio.create_task(self._complain(watch))
        try:
            while not watch.count:
                await watch.next()
        finally:
            complaining.cancel()
        tasks = [
            asyncio.create_task(self._receive(socket)),
            asyncio.create_task(self._pulse()),
            asyncio.create_task(watch.wait_for_loss()),
        ]
        try:
            self._join()
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _complain_of_loss(self) -> None:
        if self.joined:
            _log.warning("the registry at %s is lost; concepts cannot be created or deleted", self.address)

    def _lose(self) -> None:
        self.joined, self._socket = False, None
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(_unavailable())

    async def _complain(self, watch: ConnectionWatch) -> None:
        """Logs now and then why there is no connection."""
        while True:
            await asyncio.sleep(_LINE_SECONDS)
            facts = {"address": self.address, "reason": watch.problem or "there is no connection yet"}
            _log.warning("waiting for the registry at %(address)s: %(reason)s", facts)

    async def _pulse(self) -> None:
        while True:
            self.tell(Loads(self._loads()))
            await asyncio.sleep(PULSE_SECONDS)

    def _join(self) -> None:
        requests = {account: count for account, count in self.requests.items() if count > 0}
        self.tell(Join(__version__, self.url, requests))

    async def _receive(self, socket: zmq.asyncio.Socket) -> None:
        """Handles the answers one after the other."""
        while True:
            try:
                answer = registry.decode_answer(await socket.recv())
            except msgspec.DecodeError as error:
                _log.error("the registry at %s speaks another protocol: %s", self.address, error)
                continue
            await self._handle(answer)

    async def _handle(self, answer: Answer) -> None:
        match answer:
            case Done() | Direction():
                self._settle(answer)
            case Stored():
                if self.listener:
                    await self.listener.stored(answer.name, answer.content)
                self._note(answer.change)
            case Removed():
                if self.listener:
                    await self.listener.removed(answer.concept)
                self._note(answer.change)
            case Joined():
                if self.listener:
                    await self.listener.joined(answer.concepts)
                self.joined, self.gateways = True, answer.gateways
                _log.info("joined the registry at %s", self.address)
            case Workers():
                self._set_workers(answer)
            case Refused():
                await self._bear_refusal(answer)

    def _settle(self, answer: Done | Direction) -> None:
        waiting = self._waiting.get(answer.request_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def _note(self, change: int) -> None:
        if change:
            self.tell(Noted(change))

    def _set_workers(self, answer: Workers) -> None:
        self._workers, self.gateways = answer.models, max(1, answer.gateways)
        for model, followers in self._followers.items():
            for follower in followers:
                follower(answer.models.get(model, []))

    async def _bear_refusal(self, refused: Refused) -> None:
        """Joins again: the registry may have been restarted."""
        if self.joined:
            _log.warning("joining the registry at %s again: %s", self.address, refused.message)
        else:
            _log.error("the registry at %s refuses this server: %s", self.address, refused.message)
            await asyncio.sleep(PULSE_SECONDS)
        self.joined = False
        self._join()


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


def _unavailable() -> ApiError:
    return EngineUnavailable("the registry that the servers share is not available; try again later")


def _error(answer: Done) -> ApiError:
    code = ErrorCode(answer.code)
    if code is ErrorCode.RATE_LIMITED:
        return RateLimited(answer.message, answer.seconds)
    return ApiError(code, answer.message, "name" if code is ErrorCode.CONFLICT else None)

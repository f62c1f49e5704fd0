"""A server's connection to the registry. inference/interface/registry.py describes the messages."""

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import msgspec
import zmq
import zmq.asyncio

from app import __version__
from app.errors import ApiError, EngineUnavailable, ErrorCode, RateLimited
from app.registry.connection import connecting
from app.workers.connection_watch import ConnectionWatch
from inference.interface import registry
from inference.interface.registry import (
    PULSE_SECONDS,
    Answer,
    Begin,
    Charge,
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
    """Hears of all changes, in the order in which the registry has made them, also of this server's own."""

    async def stored(self, name: str, content: bytes) -> None:
        """A concept is stored, in a file of this name."""

    async def removed(self, concept: str) -> None:
        """The concept with this id is deleted."""

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
        self.charges: dict[int, Charge] = {}
        """Of the requests in progress that the registry has counted, by the request id of their Begin."""
        self.has_joined = asyncio.Event()
        """Set once the registry has answered for the first time."""
        self._key = key
        self._loads = loads
        self._identity = uuid.uuid4().bytes
        self._numbers = itertools.count(1)
        self._socket: zmq.asyncio.Socket | None = None
        self._join_at = 0.0
        """By time.monotonic(): when to join, unless the server has joined by then."""
        self._refusal = ""
        """The last one."""
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

    def new_id(self) -> int:
        """For a question."""
        return next(self._numbers)

    def check(self) -> None:
        """Raises UNAVAILABLE if the registry does not answer now."""
        if not self.joined:
            raise _unavailable()

    async def ask(self, question: Question) -> Done | Direction:
        """Returns the answer.

        Raises the answer's error, or UNAVAILABLE if the registry does not answer. It may then still do later
        what was asked. So the server joins again, which makes both agree.
        """
        self.check()
        waiting = self._waiting[question.request_id] = asyncio.get_running_loop().create_future()
        try:
            self.tell(question)
            async with asyncio.timeout(_ANSWER_SECONDS):
                answer: Done | Direction = await waiting
        except TimeoutError:
            self._leave("it does not answer")
            raise _unavailable() from None
        finally:
            del self._waiting[question.request_id]
        if isinstance(answer, Done) and answer.code:
            raise _error(answer)
        return answer

    def tell(self, message: Message) -> None:
        """Sends a message. Has no effect without a connection, or before the server has joined."""
        if self._socket is not None and (self.joined or isinstance(message, Join)):
            # It is sent now, or never if the connection is lost.
            sending = asyncio.ensure_future(self._socket.send(registry.encode(message), zmq.NOBLOCK))
            sending.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def run(self) -> None:
        """Keeps the connection up until it is cancelled."""
        while True:
            try:
                await self._run_once()
            except Exception:  # whatever it is, the server needs the registry
                _log.exception("the connection to the registry at %s has failed", self.address)
                await asyncio.sleep(PULSE_SECONDS)

    async def _run_once(self) -> None:
        """Runs one connection to its end."""
        async with connecting(self.address, self._key, self._identity) as (socket, watch):
            self._socket = socket
            try:
                await self._serve(socket, watch)
                self._leave("the connection is lost")
            finally:
                self._socket = None
                self._leave()

    async def _serve(self, socket: zmq.asyncio.Socket, watch: ConnectionWatch) -> None:
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
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _leave(self, reason: str = "") -> None:
        """Asks nothing more until the server has joined again. `reason`: for the log, if that is news."""
        if self.joined and reason:
            line = "the registry at %s is lost, so concepts cannot be created or deleted: %s"
            _log.warning(line, self.address, reason)
        self.joined, self._join_at = False, 0.0
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
        """Joins, and then says that the server is there. Joins again if it was refused or not answered."""
        while True:
            if self.joined:
                self.tell(Loads(self._loads()))
            elif time.monotonic() >= self._join_at:
                self._join_at = time.monotonic() + _ANSWER_SECONDS
                self.tell(Join(__version__, self.url, self.charges))
            await asyncio.sleep(PULSE_SECONDS)

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
                self.has_joined.set()
                _log.info("joined the registry at %s", self.address)
            case Workers():
                self._set_workers(answer)
            case Refused():
                self._bear_refusal(answer)

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

    def _bear_refusal(self, refused: Refused) -> None:
        """The registry may have been restarted, or has not heard this server for too long."""
        if not self.joined and refused.message != self._refusal:
            _log.error("the registry at %s refuses this server: %s", self.address, refused.message)
        self._refusal = refused.message
        self._leave(refused.message)


def _unavailable() -> ApiError:
    return EngineUnavailable("the registry that the servers share is not available; try again later")


def _error(answer: Done) -> ApiError:
    code = ErrorCode(answer.code)
    if code is ErrorCode.RATE_LIMITED:
        return RateLimited(answer.message, answer.seconds)
    return ApiError(code, answer.message, "name" if code is ErrorCode.CONFLICT else None)

"""The registry's process: answers its members' messages. inference/interface/registry.py describes them."""

import logging
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import zmq

from app.concepts.concept import Concept
from app.concepts.store import ConceptStore, decode, encode, file_name
from app.concepts.uses import taken
from app.errors import ApiError, ErrorCode, RateLimited
from app.limits.budget import CallerLimits
from app.registry.direction_archive import DirectionArchive
from app.registry.members import Member, Members
from app.registry.pending import PendingChanges
from app.registry.shared_budgets import SharedBudgets
from inference.interface import registry
from inference.interface.registry import (
    PULSE_SECONDS,
    Announce,
    Answer,
    AskStatus,
    Begin,
    Direction,
    Done,
    End,
    GetDirection,
    Heard,
    Join,
    Joined,
    Loads,
    Message,
    Noted,
    PutDirection,
    Refused,
    Remove,
    Removed,
    Status,
    Store,
    Stored,
    Take,
    Withdraw,
    Workers,
)

_log = logging.getLogger(__name__)

_POLL_MILLISECONDS = 100
_MAX_MESSAGES = 1000
"""In one turn, so that there is time for the rest."""


class Registry:
    """Serves on a bound socket until a signal ends it."""

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        directory: Path,
        version: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`directory`: for concepts, directions and budgets. `clock`: seconds, never set back."""
        self._socket = socket
        self._version = version
        self._clock = clock
        self._members = Members(clock)
        self._changes = PendingChanges(clock)
        self._store = ConceptStore(created=directory / "concepts")
        self._concepts = {concept.id: concept for concept in self._store.load() if _is_whole(concept)}
        self._budgets = SharedBudgets(directory / "budgets.json", clock)
        self._directions = DirectionArchive(directory / "directions")
        self._looked = clock()
        self._stopped = False

    def serve(self) -> None:
        """Returns after SIGINT or SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        while not self._stopped:
            self.turn(_POLL_MILLISECONDS)
        self._budgets.save()

    def turn(self, milliseconds: int) -> None:
        """Answers messages that are here. Waits for one, up to this time."""
        for _ in range(_MAX_MESSAGES):
            if not self._socket.poll(milliseconds):
                break
            milliseconds = 0
            member, *frames = self._socket.recv_multipart()
            try:
                self._take(member, frames)
            except Exception:  # a message must not end the registry, whatever is wrong with it
                _log.exception("a message cannot be handled")
        if self._clock() - self._looked >= PULSE_SECONDS:
            self._looked = self._clock()
            for member in self._members.silent():
                self._drop(member, "it is silent")
            self._budgets.save()
        self._answer_known_changes()

    def _stop(self, *_: object) -> None:
        self._stopped = True

    def _take(self, member: Member, frames: list[bytes]) -> None:
        try:
            message = registry.decode_message(b"".join(frames))
        except msgspec.DecodeError as error:
            _log.error("a member has sent a message that cannot be read: %s", error)
            self._send(member, Refused("it speaks another protocol"))
            return
        if isinstance(message, Announce | Join) and message.version != self._version:
            reason = f"the registry has version {self._version}, and this member {message.version}"
            _log.warning("refusing a member: %s", reason)
            self._send(member, Refused(reason))
        elif isinstance(message, Announce | Withdraw | Join | AskStatus):
            self._handle_anyone(member, message)
        elif member not in self._members.gateways:  # the registry was restarted, or has dropped it
            self._send(member, Refused("the registry does not know this gateway"))
        else:
            self._members.hear(member)
            self._handle_gateway(member, message)

    def _handle_anyone(self, member: Member, message: Announce | Withdraw | Join | AskStatus) -> None:
        match message:
            case Announce():
                if self._members.announce(member, message.model, message.address):
                    _log.info("a worker of %s serves at %s", message.model, message.address)
                    self._publish_workers()
                self._send(member, Heard())
            case Withdraw():
                self._drop(member, "it stops")
            case Join():
                self._welcome(member, message)
            case AskStatus():
                self._send(member, self._status(message))

    def _welcome(self, gateway: Member, join: Join) -> None:
        _log.info("the gateway %s has joined", join.url)
        self._members.join(gateway, join.url)
        self._budgets.join(gateway, join.charges)
        for concept in self._concepts.values():
            if _is_whole(concept):
                self._send(gateway, Stored(0, file_name(concept), encode(concept)))
        self._send(gateway, Joined(list(self._concepts), len(self._members.gateways)))
        self._publish_workers()

    def _handle_gateway(self, gateway: Member, message: Message) -> None:
        match message:
            case Loads():
                self._members.gateways[gateway].loads = message.models
            case Noted():
                self._changes.note(gateway, message.change)
            case Store():
                self._try(gateway, message.request_id, partial(self._keep, gateway, message))
            case Remove():
                self._try(gateway, message.request_id, partial(self._remove, gateway, message))
            case Begin():
                limits = CallerLimits(message.max_requests, message.tokens_per_minute)
                begin = partial(self._budgets.begin, gateway, message.request_id, message.account, limits)
                self._try(gateway, message.request_id, begin, done=True)
            case Take():
                take = partial(self._budgets.take, gateway, message.charge, message.tokens)
                self._try(gateway, message.request_id, take, done=True)
            case End():
                self._budgets.end(gateway, message.charge, message.used)
            case PutDirection():
                self._directions.put(message.model, message.concept, message.content, message.calibration)
            case GetDirection():
                self._send_direction(gateway, message)

    def _try(self, gateway: Member, request_id: int, act: Callable[[], None], done: bool = False) -> None:
        """Answers with the error if `act` raises one, or else with success if `done`."""
        try:
            act()
        except RateLimited as error:
            self._send(gateway, Done(request_id, error.code.value, error.message, error.retry_after or 0.0))
        except ApiError as error:
            self._send(gateway, Done(request_id, error.code.value, error.message))
        except OSError as error:
            _log.error("a concept cannot be kept or deleted: %s", error)
            message = "the registry cannot write to its disk"
            self._send(gateway, Done(request_id, ErrorCode.UNAVAILABLE.value, message))
        else:
            if done:
                self._send(gateway, Done(request_id))

    def _keep(self, gateway: Member, message: Store) -> None:
        """Raises INVALID_REQUEST, CONFLICT if there is another concept of this id, or OSError."""
        try:
            concept = decode(message.name, message.content)
        except ValueError as error:
            reason = f"the registry refuses the concept: {error}"
            raise ApiError(ErrorCode.INVALID_REQUEST, reason) from None
        if not _is_whole(concept):
            raise ApiError(ErrorCode.INVALID_REQUEST, "the registry refuses the concept: its vectors")
        known = self._concepts.setdefault(concept.id, concept)
        if known is concept:
            try:
                self._store.write(concept)
            except OSError:
                del self._concepts[concept.id]
                raise
        elif known.digest != concept.digest:
            raise taken(known)
        news = partial(Stored, name=file_name(known), content=encode(known))
        self._publish(gateway, message.request_id, news)

    def _remove(self, gateway: Member, message: Remove) -> None:
        """Raises OSError."""
        if concept := self._concepts.get(message.concept):
            self._store.remove(concept)
            del self._concepts[message.concept]
            if concept.digest not in {other.digest for other in self._concepts.values()}:
                self._directions.remove(concept.digest)
        self._publish(gateway, message.request_id, partial(Removed, concept=message.concept))

    def _publish(self, by: Member, request_id: int, news: Callable[[int], Answer]) -> None:
        """Tells all gateways, in the same order. The one that has asked is answered once the others know."""
        change = self._changes.add(by, request_id, self._members.gateways.keys() - {by})
        for gateway in list(self._members.gateways):
            self._send(gateway, news(change))

    def _answer_known_changes(self) -> None:
        for change in self._changes.take_known():
            self._send(change.asked_by, Done(change.request_id))

    def _send_direction(self, gateway: Member, message: GetDirection) -> None:
        found = self._directions.get(message.model, message.concept)
        if found is None:
            self._send(gateway, Direction(message.request_id))
        else:
            self._send(gateway, Direction(message.request_id, found.content, found.calibration))

    def _status(self, message: AskStatus) -> Status:
        members = self._members
        urls = [gateway.url for gateway in members.gateways.values()]
        return Status(message.request_id, members.addresses(), urls, members.loads(), len(self._concepts))

    def _publish_workers(self) -> None:
        news = Workers(self._members.addresses(), len(self._members.gateways))
        for gateway in list(self._members.gateways):
            self._send(gateway, news)

    def _drop(self, member: Member, reason: str) -> None:
        """Forgets a member that is gone."""
        if worker := self._members.workers.pop(member, None):
            _log.warning("the worker of %s at %s is gone: %s", worker.model, worker.address, reason)
        if gateway := self._members.gateways.pop(member, None):
            _log.warning("the gateway %s is gone: %s", gateway.url, reason)
            self._budgets.leave(member)
            self._changes.forget(member)
        if worker or gateway:
            self._publish_workers()

    def _send(self, member: Member, answer: Answer) -> None:
        """Sends to a member that may be gone."""
        try:
            self._socket.send_multipart([member, registry.encode(answer)])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._drop(member, "it has closed the connection")


def _is_whole(concept: Concept) -> bool:
    """Whether its vectors can be read and fit, if it has some."""
    try:
        if concept.vectors is not None:
            concept.vectors.load()
    except ApiError as error:
        _log.error("%s is left out: %s", concept.id, error.message)
        return False
    return True

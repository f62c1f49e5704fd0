"""The messages between a registry and its members, which are workers and gateways. Imports no torch.

A registry is one process. It knows the addresses of workers, and keeps what several gateways share: created
concepts, directions, and the budgets of callers. It has a ROUTER socket, to which each member connects with a
DEALER socket. Every message is one frame of MessagePack. A worker announces itself each PULSE_SECONDS. A
gateway joins, and then reports its loads each PULSE_SECONDS. A member is gone if the registry has heard
nothing from it for SILENT_SECONDS.
"""

import msgspec

PULSE_SECONDS = 1.0
SILENT_SECONDS = 4.0


class Announce(msgspec.Struct, frozen=True, tag="announce"):
    """A worker serves."""

    version: str
    """Tiller's version. Only members and a registry of the same version work together."""
    model: str
    """The name of the model in the configuration."""
    address: str
    """Where gateways reach the worker: `tcp://HOST:PORT` or `ipc://PATH`."""


class Withdraw(msgspec.Struct, frozen=True, tag="withdraw"):
    """The worker takes no new requests."""


class Join(msgspec.Struct, frozen=True, tag="join"):
    """The first message of a gateway on each connection. The answer is every Stored concept, then Joined."""

    version: str
    url: str
    """Where clients reach the gateway, for the status."""
    requests: dict[str, int]
    """Account -> number of requests in progress, counted by the registry before it was restarted."""


class ModelLoad(msgspec.Struct, frozen=True):
    """The load of one model's workers, by all gateways together."""

    running: int = 0
    """Sequences that run."""
    waiting: int = 0
    """Sequences that wait in the workers' queues."""
    workers: int = 0
    """Number of workers that take requests."""


class Loads(msgspec.Struct, frozen=True, tag="loads"):
    """A gateway's pulse."""

    models: dict[str, ModelLoad]


class Store(msgspec.Struct, frozen=True, tag="store"):
    """Keep a concept. Answered by Done, once all other gateways know it."""

    request_id: int
    name: str
    """The name of its file."""
    content: bytes


class Remove(msgspec.Struct, frozen=True, tag="remove"):
    """Delete a concept. Answered by Done, once all other gateways know it."""

    request_id: int
    concept: str
    """Its id."""


class Noted(msgspec.Struct, frozen=True, tag="noted"):
    """The gateway knows a change."""

    change: int


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """Count a request in progress. Answered by Done."""

    request_id: int
    account: str
    max_requests: int | None
    tokens_per_minute: int | None


class Take(msgspec.Struct, frozen=True, tag="take"):
    """Take tokens for a request that has begun. Answered by Done."""

    request_id: int
    account: str
    tokens: int
    held: int
    """Tokens that the request has taken before."""


class End(msgspec.Struct, frozen=True, tag="end"):
    """A request has ended. Not answered."""

    account: str
    unused: int
    """Tokens that it has taken, less those that it has used."""


class PutDirection(msgspec.Struct, frozen=True, tag="put_direction"):
    """Keep the direction of a concept. Not answered."""

    model: str
    """What the direction depends on: see app.registry.shared_directions."""
    concept: str
    """The concept's digest."""
    content: bytes
    calibration: bytes


class GetDirection(msgspec.Struct, frozen=True, tag="get_direction"):
    """Answered by Direction."""

    request_id: int
    model: str
    concept: str


class AskStatus(msgspec.Struct, frozen=True, tag="ask_status"):
    """Answered by Status. Needs no Join."""

    request_id: int


Message = (
    Announce
    | Withdraw
    | Join
    | Loads
    | Store
    | Remove
    | Noted
    | Begin
    | Take
    | End
    | PutDirection
    | GetDirection
    | AskStatus
)
"""From a member to the registry."""


class Heard(msgspec.Struct, frozen=True, tag="heard"):
    """The answer to Announce."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The registry does not know the member, or does not accept it. The member may try again."""

    message: str


class Stored(msgspec.Struct, frozen=True, tag="stored"):
    """There is this concept. Answered by Noted if `change` is not 0."""

    change: int
    name: str
    content: bytes


class Removed(msgspec.Struct, frozen=True, tag="removed"):
    """There is no concept of this id any more. Answered by Noted."""

    change: int
    concept: str


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """The gateway knows everything now."""

    concepts: list[str]
    """The ids of all concepts."""
    gateways: int
    """Number of gateways, with this one."""


class Workers(msgspec.Struct, frozen=True, tag="workers"):
    """The workers that serve, after each change."""

    models: dict[str, list[str]]
    """Model -> addresses."""
    gateways: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    request_id: int
    code: str = ""
    """The code of the error, as in app.errors.ErrorCode. Empty if there is none."""
    message: str = ""
    seconds: float = 0.0
    """After which the caller may try again, for RATE_LIMITED."""


class Direction(msgspec.Struct, frozen=True, tag="direction"):
    request_id: int
    content: bytes | None = None
    """None: the registry does not have it."""
    calibration: bytes = b""


class Status(msgspec.Struct, frozen=True, tag="status"):
    request_id: int
    workers: dict[str, list[str]]
    """Model -> addresses."""
    gateways: list[str]
    """Their URLs."""
    loads: dict[str, ModelLoad]
    concepts: int
    """How many callers have created."""


Answer = Heard | Refused | Stored | Removed | Joined | Workers | Done | Direction | Status
"""From the registry to a member."""

_message_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode(message: Message | Answer) -> bytes:
    return msgspec.msgpack.encode(message)


def decode_message(frame: bytes) -> Message:
    """Raises msgspec.DecodeError."""
    return _message_decoder.decode(frame)


def decode_answer(frame: bytes) -> Answer:
    """Raises msgspec.DecodeError."""
    return _answer_decoder.decode(frame)

"""What controller, actors and commands tell each other. Ray carries it as bytes, so it stays plain data."""

from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec

Kind = Literal["registry", "worker", "gateway"]
State = Literal["starting", "running", "failed", "stopping", "stopped"]
"""Of an actor's process. "failed": it has ended, and starts again after a delay."""


class Resources(msgspec.Struct, frozen=True):
    """What an actor reserves on its node."""

    cpus: float = 0.0
    gpus: int = 0
    on_head: bool = False
    """True: only on the head node."""
    spread: bool = False
    """True: on different nodes, as far as there are enough."""


class Task(msgspec.Struct, frozen=True):
    """The process that an actor keeps running, with all that it needs on its node."""

    kind: Kind
    version: str
    """The version of Tiller. A node with another one runs nothing."""
    config: dict[str, object]
    """The settings. Paths of `files` are relative to the process' working directory."""
    files: dict[str, bytes]
    """Relative path -> content."""
    resources: Resources
    drain_seconds: float
    """How long the process may go on after SIGTERM."""
    model: str = ""
    """The name of a worker's model."""
    host: str = ""
    """The address on which a gateway listens."""
    port: int = 0
    """The port of the registry; the first port of gateways; 0 for workers, which take any free port."""
    ports: int = 1
    """How many ports gateways may use on a node."""


class ModelPlan(msgspec.Struct, frozen=True):
    """A model's workers."""

    task: Task
    least: int
    most: int
    max_running: int
    """How many requests one worker computes together."""


class Plan(msgspec.Struct, frozen=True):
    """What a cluster shall run."""

    registry: Task
    gateway: Task
    gateways: int
    models: dict[str, ModelPlan]
    registry_address: str
    grow_after_seconds: float
    shrink_after_seconds: float


class Report(msgspec.Struct, frozen=True):
    """What an actor says about its process."""

    state: State
    node: str
    """Ray's id of the node."""
    host: str
    """The node's IP address."""
    address: str = ""
    """`tcp://HOST:PORT`, or a gateway's URL. Empty: there is no process yet."""
    healthy: bool = False
    """Whether a gateway answers /health. False for others."""
    restarts: int = 0
    """How often the process has been started again by this actor."""
    failures: int = 0
    """How often in a row it has ended soon after its start."""
    reason: str = ""
    """Why it has ended the last time."""
    misplaced: bool = False
    """Whether it has refused its configuration, as when the node has no files of the model."""
    incarnation: str = ""
    """Different for each actor process: Ray has started the actor again if it changes."""


class Node(msgspec.Struct, frozen=True):
    """A living node of the Ray cluster."""

    id: str
    host: str
    is_head: bool
    cpus: float
    gpus: float


class MemberStatus(msgspec.Struct, frozen=True):
    """An actor and its process, for the operator."""

    number: int
    node: str
    """The node's IP address. Empty: it has no place yet."""
    address: str
    state: Literal["waiting", "starting", "serving", "failed", "stopping"]
    restarts: int
    """Starts after the first one, since the controller began."""
    failures: int
    reason: str
    outdated: bool
    """Whether a process with the new configuration takes its place soon."""
    hopeless: bool
    """Whether it cannot serve until somebody changes something: the configuration, or the nodes."""


class ModelStatus(msgspec.Struct, frozen=True):
    """A model's workers and requests, for the operator."""

    name: str
    wanted: int
    least: int
    most: int
    fixed: bool
    """Whether `tiller cluster scale` has set the number."""
    running: int
    waiting: int
    """Requests, summed over all gateways."""
    workers: Sequence[MemberStatus]
    refusals: dict[str, str]
    """Node's IP address -> why the model's workers do not run there."""


class ClusterStatus(msgspec.Struct, frozen=True):
    """What the controller has seen last."""

    nodes: Sequence[Node]
    registry_address: str
    registry: Sequence[MemberStatus]
    gateways: Sequence[MemberStatus]
    wanted_gateways: int
    models: Sequence[ModelStatus]
    leaving: int = 0
    """Processes of models that are no longer in the configuration."""


_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def pack(value: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(value)


def unpack(content: bytes, kind: type[_Struct]) -> _Struct:
    return msgspec.msgpack.decode(content, type=kind)

"""All calls of Ray, which has few types. Imports Ray when it is used, because it is an extra.

Ray places, supervises and moves actors here, and it carries configurations and reports. Tokens go past it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence, Set
from contextlib import suppress
from typing import Any, Literal

from app.cluster.actors import ControllerActor, ProcessActor
from app.cluster.errors import ClusterError
from app.cluster.structures import Node, Report, Resources, Task, pack, unpack

NAMESPACE = "tiller"
CONTROLLER = "controller"

_HEAD = "node:__internal_head__"
"""A resource that Ray gives to the head node only."""
_SOME = 0.001
"""An amount of a resource that only says where an actor may run."""
_SILENT_SECONDS = 10.0
"""An actor that has not answered for this long is lost, or has no place yet."""
_PROBE_SECONDS = 10.0

Authentication = Literal["token", "none"]

# Asks for the nodes, without or with the token: in a process of its own, because Ray reads the mode once.
_PROBE = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)
except AuthenticationError:
    sys.exit(10)
except Exception:
    sys.exit(11)
"""
_REFUSED = 10


def import_ray() -> Any:
    """Raises ClusterError if Ray is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ClusterError("Ray is not installed: pip install 'tiller[cluster]'") from None
    return ray


def connect(address: str | None, authentication: Authentication) -> None:
    """Connects this process to a Ray cluster. Raises ClusterError.

    `address`: HOST:PORT of the head node. None: the cluster of this node, or RAY_ADDRESS.
    """
    ray = import_ray()
    found = address or _own_address()
    if authentication == "token":
        _require_token(ray)
    _check(found, authentication)
    try:
        ray.init(address=found, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"the Ray cluster at {found}: {_first_line(error)}") from None


def _own_address() -> str:
    """Raises ClusterError."""
    from ray._private.utils import read_ray_address  # what ray.init reads as well

    found = os.environ.get("RAY_ADDRESS") or read_ray_address()
    if not found:
        raise ClusterError("there is no Ray cluster on this host; `tiller cluster node --head` starts one")
    return str(found)


def _require_token(ray: Any) -> None:
    """Turns token authentication on for this process. Raises ClusterError."""
    from ray._private.authentication import authentication_token_setup as setup

    os.environ["RAY_AUTH_MODE"] = "token"
    ray._raylet.Config.initialize("")  # Ray has read the mode when it was imported
    try:
        setup.ensure_token_if_auth_enabled(create_token_if_missing=False)
    except Exception:
        raise ClusterError("there is no Ray token here: copy ~/.ray/auth_token from the head node") from None


def _check(address: str, authentication: Authentication) -> None:
    """Says quickly what ray.init would say after 20 seconds, and what it would not say at all.

    Raises ClusterError.
    """
    strangers = _probe(address, {"RAY_AUTH_MODE": "disabled"})
    friends = _probe(address, {}) if authentication == "token" else strangers
    refusals = [probe.wait() for probe in (strangers, friends)]
    if refusals[1] == _REFUSED:
        raise ClusterError(f"the Ray cluster at {address} refuses this host's Ray token")
    if refusals[1]:
        raise ClusterError(f"there is no Ray cluster at {address}")
    if authentication == "token" and refusals[0] != _REFUSED:
        raise ClusterError(
            f"the Ray cluster at {address} has no token authentication: start its nodes with `tiller cluster "
            "node`, or set cluster.ray_authentication to none"
        )


def _probe(address: str, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(  # noqa: S603 - no shell
        [sys.executable, "-c", _PROBE, address],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def create_token() -> None:
    """Makes ~/.ray/auth_token if there is no token here yet. Raises ClusterError."""
    import_ray()
    from ray._private.authentication import authentication_token_setup as setup
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    if AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        return
    previous = os.umask(0o077)
    try:
        setup.generate_and_save_token()
    except OSError as error:
        raise ClusterError(f"the Ray token cannot be written: {error}") from None
    finally:
        os.umask(previous)


def disconnect() -> None:
    with suppress(ClusterError):
        import_ray().shutdown()


def living_nodes() -> list[Node]:
    return [
        Node(
            each["NodeID"],
            each["NodeManagerAddress"],
            _HEAD in each["Resources"],
            each["Resources"].get("CPU", 0.0),
            each["Resources"].get("GPU", 0.0),
        )
        for each in import_ray().nodes()
        if each["Alive"]
    ]


class RayActors:
    """Implements app.cluster.controller.Actors."""

    def __init__(self) -> None:
        self._ray = import_ray()
        self._pending: dict[str, Any] = {}
        """Name -> the report that was asked for and has not come yet."""
        self._reports: dict[str, tuple[float, Report]] = {}
        """Name -> when the newest report came, and the report."""

    def names(self) -> Sequence[str]:
        return [str(name) for name in self._ray.util.list_named_actors()]

    def nodes(self) -> Sequence[Node]:
        return living_nodes()

    def create(self, name: str, task: Task, avoid: Set[str], home: str | None) -> None:
        options = {**_options(name), **_placement(task.resources, avoid, home)}
        actor = self._ray.remote(_NodeProcess).options(max_concurrency=4, **options)
        actor.remote(pack(task))

    def report(self, name: str) -> Report | None:
        self._receive(name)
        if name not in self._pending:
            with suppress(Exception):  # the actor is gone
                self._pending[name] = self._ray.get_actor(name).report.remote()
        at, report = self._reports.get(name, (0.0, None))
        return report if time.monotonic() - at < _SILENT_SECONDS else None

    def stop(self, name: str) -> None:
        with suppress(Exception):  # the actor is gone
            self._ray.get_actor(name).stop.remote()

    def remove(self, name: str) -> None:
        self._pending.pop(name, None)
        self._reports.pop(name, None)
        with suppress(Exception):  # the actor is gone
            self._ray.kill(self._ray.get_actor(name), no_restart=True)

    def _receive(self, name: str) -> None:
        """Takes over a report that has come."""
        asked = self._pending.get(name)
        if asked is None or not self._ray.wait([asked], timeout=0)[0]:
            return
        del self._pending[name]
        try:
            self._reports[name] = time.monotonic(), unpack(self._ray.get(asked), Report)
        except self._ray.exceptions.RayError:
            self._reports.pop(name, None)


class ControllerHandle:
    """The controller, for the commands."""

    def __init__(self) -> None:
        self._ray = import_ray()

    def create(self, directory: str, version: str) -> None:
        """Starts the controller on the head node if there is none of this version of Tiller.

        Raises ClusterError.
        """
        if self.exists() and self.call("version") != version:
            self._ray.kill(self._ray.get_actor(CONTROLLER), no_restart=True)
        placement = _placement(Resources(on_head=True), frozenset(), None)
        options = {**_options(CONTROLLER), **placement, "get_if_exists": True}
        self._ray.remote(_NodeController).options(max_concurrency=4, **options).remote(directory)

    def exists(self) -> bool:
        return CONTROLLER in self._ray.util.list_named_actors()

    def call(self, method: str, *arguments: object, seconds: float = 30.0) -> Any:
        """Raises ClusterError."""
        try:
            actor = self._ray.get_actor(CONTROLLER)
            return self._ray.get(getattr(actor, method).remote(*arguments), timeout=seconds)
        except ValueError:
            raise ClusterError(
                "Tiller does not run on this Ray cluster; `tiller cluster up` starts it"
            ) from None
        except self._ray.exceptions.GetTimeoutError:
            raise ClusterError(f"the controller has not answered for {seconds:g} seconds") from None
        except self._ray.exceptions.RayError as error:
            raise ClusterError(f"the controller does not answer: {_first_line(error)}") from None


def _options(name: str) -> dict[str, Any]:
    """Of all actors: they outlive the command that makes them, and Ray starts them again for ever."""
    return {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "max_restarts": -1}


def _placement(resources: Resources, avoid: Set[str], home: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    if resources.on_head:
        options["resources"] = {_HEAD: _SOME}
    if home is not None:
        # Ray places an actor that needs nothing at random.
        options["num_cpus"] = resources.cpus or _SOME
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(home, soft=True)
    elif avoid:
        from ray.util.scheduling_strategies import NodeLabelSchedulingStrategy, NotIn

        options["scheduling_strategy"] = NodeLabelSchedulingStrategy(
            {"ray.io/node-id": NotIn(*sorted(avoid))}
        )
    return options


class _NodeProcess(ProcessActor):
    """A ProcessActor that asks Ray where it is."""

    def __init__(self, task: bytes) -> None:
        ray = import_ray()
        node, host = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
        super().__init__(task, node, host)


class _NodeController(ControllerActor):
    """A ControllerActor with the actors of Ray."""

    def __init__(self, directory: str) -> None:
        super().__init__(RayActors(), directory)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

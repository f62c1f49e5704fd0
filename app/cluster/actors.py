"""The classes of which Ray makes actors. They exchange bytes, and run processes that are none of Ray's."""

import asyncio
import logging
import threading
import uuid
from pathlib import Path

import zmq

from app import __version__
from app.cluster.controller import Actors, Controller
from app.cluster.keeper import Keeper
from app.cluster.launching import Launcher, is_healthy
from app.cluster.scaling import Load
from app.cluster.store import PlanStore
from app.cluster.structures import Plan, Report, Task, pack, unpack
from app.cluster.summary import View
from app.errors import StartError
from app.registry.connection import status
from inference.interface.worker_key import WorkerKey

_LOOK_SECONDS = 2.0


class ProcessActor:
    """Keeps the process of one task running on the node where Ray has placed this actor."""

    def __init__(self, task: bytes, node: str, host: str) -> None:
        """`node`: Ray's id of the node. `host`: its IP address."""
        decoded = unpack(task, Task)
        self._is_gateway = decoded.kind == "gateway"
        self._node, self._host = node, host
        self._incarnation = uuid.uuid4().hex
        self._launcher = Launcher(decoded, host)
        self._keeper = Keeper(self._launcher, decoded.drain_seconds)
        self._keeper.start()

    def report(self) -> bytes:
        keeper = self._keeper
        healthy = self._is_gateway and keeper.state == "running" and is_healthy(keeper.address)
        return pack(
            Report(
                keeper.state,
                self._node,
                self._host,
                keeper.address,
                healthy,
                keeper.restarts,
                keeper.failures,
                keeper.reason,
                keeper.misplaced,
                self._incarnation,
            )
        )

    def stop(self) -> None:
        """Returns at once."""
        self._keeper.stop()
        threading.Thread(target=self._clean_up, name="clean-up", daemon=True).start()

    def _clean_up(self) -> None:
        self._keeper.wait()
        self._launcher.clean_up()


class ControllerActor:
    """Runs the controller on the head node."""

    def __init__(self, actors: Actors, directory: str) -> None:
        """`directory`: for the plan, on the head node's disk."""
        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
        store = PlanStore(Path(directory).expanduser() / "plan")
        self._controller = Controller(actors, look, store)
        threading.Thread(target=self._controller.run, name="controller", daemon=True).start()

    def version(self) -> str:
        """Of Tiller."""
        return __version__

    def apply(self, plan: bytes) -> None:
        self._controller.apply(unpack(plan, Plan))

    def scale(self, model: str, count: int) -> str | None:
        """Returns why that is not possible."""
        return self._controller.scale(model, count)

    def shut_down(self) -> None:
        """Begins to stop all actors."""
        self._controller.shut_down()

    def status(self) -> bytes | None:
        """None: there is no plan."""
        found = self._controller.status()
        return None if found is None else pack(found)


def look(plan: Plan) -> View | None:
    """What the registry knows. None: it does not answer."""
    secret = plan.registry.files["worker.key"].strip()
    key = WorkerKey(zmq.curve_public(secret), secret)
    try:
        found = asyncio.run(status(plan.registry_address, key, _LOOK_SECONDS))
    except StartError:
        return None
    loads = {model: Load(load.running, load.waiting) for model, load in found.loads.items()}
    return View({model: set(addresses) for model, addresses in found.workers.items()}, loads)

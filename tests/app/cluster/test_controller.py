"""The controller, with actors that are only noted."""

from collections.abc import Sequence, Set
from pathlib import Path

import msgspec
import pytest

from app.cluster.controller import Controller
from app.cluster.members import Name, parse_name
from app.cluster.progress import is_hopeless, is_settled, to_lines
from app.cluster.scaling import Load
from app.cluster.store import PlanStore
from app.cluster.structures import ClusterStatus, ModelPlan, Node, Plan, Report, Resources, Task
from app.cluster.summary import View

NODES = [Node("n1", "10.0.0.1", True, 4, 0), Node("n2", "10.0.0.2", False, 4, 0)]


def task(kind: str, model: str = "", setting: str = "a", cpus: float = 1) -> Task:
    return Task(
        kind, "1", {"setting": setting}, {}, Resources(cpus=cpus, spread=kind == "gateway"), 5, model=model
    )


def plan(workers: dict[str, tuple[int, int]], setting: str = "a", gateways: int = 1, cpus: float = 1) -> Plan:
    models = {
        name: ModelPlan(task("worker", name, setting, cpus), least, most, 8)
        for name, (least, most) in workers.items()
    }
    return Plan(task("registry"), task("gateway"), gateways, models, "tcp://10.0.0.1:1", 5, 60)


class World:
    """Actors that do what they are told at once, and the registry that knows them."""

    def __init__(self, path: Path) -> None:
        self.reports: dict[str, Report | None] = {}
        self.avoided: dict[str, Set[str]] = {}
        self.loads: dict[str, Load] = {}
        self.now = 0.0
        self.registry_up = True
        self.homes: dict[str, str | None] = {}
        self.path = path
        self.controller = self.new_controller()

    def new_controller(self) -> Controller:
        return Controller(self, self.look, PlanStore(self.path / "plan"), lambda: self.now)

    def names(self) -> Sequence[str]:
        return ["controller", *self.reports]

    def nodes(self) -> Sequence[Node]:
        return NODES

    def create(self, name: str, task: Task, avoid: Set[str], home: str | None) -> None:
        assert name not in self.reports
        self.homes[name] = home
        self.avoided[name] = avoid
        fitting = [node for node in NODES if node.id not in avoid and task.resources.cpus <= node.cpus]
        node = fitting[-1] if fitting else None
        self.reports[name] = node and Report("running", node.id, node.host, f"at {name}", healthy=True)

    def report(self, name: str) -> Report | None:
        return self.reports[name]

    def stop(self, name: str) -> None:
        self.set(name, state="stopped")

    def remove(self, name: str) -> None:
        del self.reports[name]

    def look(self, plan: Plan) -> View | None:
        if not self.registry_up:
            return None
        workers: dict[str, set[str]] = {}
        for name, report in self.reports.items():
            if name.startswith("worker") and report and report.state == "running":
                workers.setdefault(name.split(":")[3], set()).add(report.address)
        return View(workers, self.loads)

    def set(self, name: str, **fields: object) -> None:
        report = self.reports[name]
        assert report is not None
        self.reports[name] = msgspec.structs.replace(report, **fields)

    def step(self, times: int = 6) -> ClusterStatus:
        for _ in range(times):
            self.now += 1
            self.controller.step()
        status = self.controller.status()
        assert status is not None
        return status

    def workers(self, model: str) -> list[Name]:
        names = [name for name in map(parse_name, self.reports) if name is not None]
        return [name for name in names if name.kind == "worker" and name.model == model]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_plan_is_carried_out(world: World) -> None:
    world.controller.apply(plan({"a": (2, 2), "b": (1, 1)}, gateways=2))
    status = world.step()
    assert is_settled(status)
    assert [len(model.workers) for model in status.models] == [2, 1]
    assert len(world.reports) == 1 + 3 + 2


def test_the_same_plan_changes_nothing(world: World) -> None:
    world.controller.apply(plan({"a": (2, 2)}))
    world.step()
    before = dict(world.reports)
    world.controller.apply(plan({"a": (2, 2)}))
    world.step()
    assert world.reports == before


def test_only_what_has_changed_is_replaced(world: World) -> None:
    world.controller.apply(plan({"a": (2, 2)}))
    world.step()
    old = set(world.reports)
    world.controller.apply(plan({"a": (2, 2)}, setting="b"))
    assert is_settled(world.step(10))
    assert {name.partition(":")[0] for name in old - set(world.reports)} == {"worker"}
    assert len(world.workers("a")) == 2


def test_a_model_that_is_gone_loses_its_workers(world: World) -> None:
    world.controller.apply(plan({"a": (1, 1), "b": (2, 2)}))
    world.step()
    world.controller.apply(plan({"a": (1, 1)}))
    assert world.controller.status().leaving == 2
    assert is_settled(world.step())
    assert not world.workers("b")


def test_a_new_controller_goes_on_where_the_last_one_was(world: World) -> None:
    world.controller.apply(plan({"a": (1, 4)}))
    world.controller.scale("a", 3)
    world.step()
    before = dict(world.reports)
    world.controller = world.new_controller()
    status = world.step()
    assert status.models[0].wanted == 3
    assert world.reports == before


def test_a_new_controller_keeps_the_workers_that_load_has_brought(world: World) -> None:
    world.controller.apply(plan({"a": (1, 3)}))
    world.step()
    world.loads["a"] = Load(8, 2)
    assert world.step(20).models[0].wanted == 3
    world.controller = world.new_controller()
    assert world.step().models[0].wanted == 3


def test_scale_sets_a_number_until_the_next_plan(world: World) -> None:
    world.controller.apply(plan({"a": (1, 2)}))
    assert world.controller.scale("a", 5) is None
    status = world.step()
    assert (status.models[0].wanted, status.models[0].fixed) == (5, True)
    assert is_settled(status)
    world.controller.apply(plan({"a": (1, 2)}))
    assert world.step().models[0].wanted == 2
    assert "no model c; there are: a" in world.controller.scale("c", 1)


def test_workers_follow_the_load_and_drain_before_they_go(world: World) -> None:
    world.controller.apply(plan({"a": (1, 2)}))
    world.step()
    world.loads["a"] = Load(8, 1)
    world.step(10)
    assert len(world.workers("a")) == 2
    world.loads["a"] = Load(0, 0)
    world.step(55)
    assert len(world.workers("a")) == 2
    world.step(10)
    assert [name.number for name in world.workers("a")] == [1]


def test_nothing_is_stopped_while_the_registry_is_down(world: World) -> None:
    world.controller.apply(plan({"a": (2, 4)}))
    world.step()
    before = dict(world.reports)
    world.registry_up = False
    status = world.step(200)
    assert world.reports == before
    assert not is_settled(status)


def test_a_model_that_fits_nowhere_is_one_line_and_the_others_serve(world: World) -> None:
    models = plan({"a": (1, 1), "b": (1, 1)})
    big = msgspec.structs.replace(models.models["b"], task=task("worker", "b", cpus=9))
    world.controller.apply(msgspec.structs.replace(models, models={**models.models, "b": big}))
    status = world.step()
    assert is_hopeless(status)
    text = "\n".join(to_lines(status))
    assert "worker 1: waiting (needs 9 CPUs on one node; the largest node has 4)" in text
    assert "model a: 1 of 1 workers serve" in text


def test_a_worker_leaves_a_node_that_has_no_files_of_its_model(world: World) -> None:
    world.controller.apply(plan({"a": (1, 1)}))
    world.step()
    [name] = world.workers("a")
    world.set(str(name), state="failed", misplaced=True, failures=1, reason="/models/a does not exist")
    status = world.step()
    assert is_settled(status)
    assert status.models[0].workers[0].node == "10.0.0.1"
    assert "  not on 10.0.0.2: /models/a does not exist" in list(to_lines(status))


def test_a_worker_that_no_node_suits_stays_and_is_hopeless(world: World) -> None:
    world.controller.apply(plan({"a": (1, 1)}))
    for _ in range(3):
        world.step()
        [name] = world.workers("a")
        world.set(str(name), state="failed", misplaced=True, failures=2, reason="no files")
    status = world.step(1)
    assert is_hopeless(status)
    assert status.models[0].refusals == {"10.0.0.1": "no files", "10.0.0.2": "no files"}


def test_restarts_are_counted_also_when_ray_moves_an_actor(world: World) -> None:
    world.controller.apply(plan({"a": (1, 1)}))
    world.step()
    [name] = world.workers("a")
    world.set(str(name), restarts=2)
    world.step()
    before = world.reports[str(name)]
    world.reports[str(name)] = None
    status = world.step()
    assert status.models[0].workers[0].reason == "its node or its actor is lost; Ray starts it again"
    world.reports[str(name)] = msgspec.structs.replace(before, restarts=0, incarnation="second")
    assert world.step().models[0].workers[0].restarts == 3


def test_down_ends_gateways_first_and_the_registry_last(world: World) -> None:
    world.controller.apply(plan({"a": (1, 1)}))
    world.step()
    order = []
    world.stop = lambda name: order.append(name.partition(":")[0]) or World.stop(world, name)  # type: ignore[method-assign]
    world.controller.shut_down()
    world.step(10)
    assert order == ["gateway", "worker", "registry"]
    assert not world.reports
    assert world.new_controller().status() is None


def test_the_plan_is_secret(world: World) -> None:
    world.controller.apply(plan({"a": (1, 1)}))
    assert (world.path / "plan").stat().st_mode & 0o777 == 0o600


def test_gateways_go_to_different_nodes(world: World) -> None:
    world.controller.apply(plan({"a": (1, 1)}, gateways=2))
    world.step()
    gateways = [name for name in world.reports if name.startswith("gateway")]
    assert {world.homes[name] for name in gateways} == {node.id for node in NODES}

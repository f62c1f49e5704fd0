"""Keeps the cluster as the plan says: starts, replaces, scales and stops actors. Knows Ray as a Protocol."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence, Set
from typing import NamedTuple, Protocol

from app.cluster.members import Member, Name, next_changes, parse_name
from app.cluster.placement import emptiest, fits
from app.cluster.planning import digest_of
from app.cluster.scaling import Load, Rules, Scale, scaled
from app.cluster.store import PlanStore, StoredPlan
from app.cluster.structures import ClusterStatus, Kind, ModelPlan, Node, Plan, Report, Task
from app.cluster.summary import Histories, Seen, View, summarize

_log = logging.getLogger(__name__)

_STEP_SECONDS = 1.0
_AVOIDED_SECONDS = 300.0
"""How long a node gets no workers of a model that one has refused to run there."""


class Actors(Protocol):
    """The actors of the cluster, by name."""

    def names(self) -> Sequence[str]:
        """Of all actors that Ray runs or shall run."""

    def create(self, name: str, task: Task, avoid: Set[str], home: str | None) -> None:
        """Lets Ray run a task. `avoid`: ids of nodes. `home`: the id of the best node, or None."""

    def report(self, name: str) -> Report | None:
        """The newest report. None: the actor does not answer."""

    def stop(self, name: str) -> None:
        """Asks an actor to drain and end its process. Returns at once."""

    def remove(self, name: str) -> None:
        """Ends an actor, and what is left of its process."""

    def nodes(self) -> Sequence[Node]:
        """The living nodes."""


class _Group(NamedTuple):
    kind: Kind
    model: str
    task: Task | None
    """None: it is no longer in the plan."""
    size: int


class _Refusal(NamedTuple):
    until: float
    """Seconds of the controller's clock."""
    host: str
    reason: str


class Controller:
    """One thread calls `step` again and again. The other methods may be called from any thread."""

    def __init__(
        self,
        actors: Actors,
        look: Callable[[Plan], View | None],
        store: PlanStore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`look` asks the registry. None: it does not answer. `store` may have a plan."""
        self._actors = actors
        self._look = look
        self._store = store
        self._clock = clock
        self._lock = threading.RLock()
        self._stored: StoredPlan | None = store.load()
        self._scales: dict[str, Scale] = {}
        self._leaving = False
        self._avoided: dict[str, dict[str, _Refusal]] = {}
        """Model -> id of a node -> why the model's workers do not run there."""
        self._histories = Histories()
        self._status: ClusterStatus | None = None

    def run(self) -> None:
        """Keeps the cluster until the process ends."""
        while True:
            try:
                self.step()
            except Exception:
                _log.exception("a step of the controller has failed")
            time.sleep(_STEP_SECONDS)

    def apply(self, plan: Plan) -> None:
        """Takes over another plan. Counts that `scale` has set are forgotten."""
        with self._lock:
            self._stored = StoredPlan(plan, {})
            self._store.save(self._stored)
            self._leaving = False
            self._avoided.clear()
            self._scales.clear()
            self.step()

    def scale(self, model: str, count: int) -> str | None:
        """Sets the number of a model's workers. Returns why that is not possible."""
        with self._lock:
            if self._stored is None:
                return "the cluster has no configuration; `tiller cluster up` gives it one"
            plan = self._stored.plan
            if model not in plan.models:
                return f"there is no model {model}; there are: {', '.join(plan.models)}"
            self._stored = StoredPlan(plan, {**self._stored.fixed, model: count})
            self._store.save(self._stored)
            self.step()
            return None

    def shut_down(self) -> None:
        """Begins to stop all actors: gateways first, the registry last."""
        with self._lock:
            self._leaving = True
            self._store.remove()
            self.step()

    def status(self) -> ClusterStatus | None:
        """None: there is no plan."""
        with self._lock:
            return self._status

    def step(self) -> None:
        """Looks at everything once, and does what can be done now."""
        with self._lock:
            if self._stored is None:
                return
            plan = self._stored.plan
            seen = self._observe(plan)
            for name, model in plan.models.items():
                self._scales[name] = self._next_scale(name, model, plan, seen)
            self._move_misplaced(plan, seen)
            for group in self._groups(plan, seen):
                self._change(group, seen)
            self._status = self._summarize(plan, seen)

    def _observe(self, plan: Plan) -> Seen:
        names = [name for name in map(parse_name, self._actors.names()) if name is not None]
        reports = {name: self._actors.report(str(name)) for name in names}
        for name, report in list(reports.items()):
            if report is not None and report.state == "stopped":
                self._actors.remove(str(name))
                del reports[name]
        self._histories.note(reports)
        return Seen(self._actors.nodes(), reports, self._look(plan))

    def _next_scale(self, name: str, model: ModelPlan, plan: Plan, seen: Seen) -> Scale:
        assert self._stored is not None  # noqa: S101 - step has checked it
        workers = seen.members("worker", name)
        # A new controller goes on with the workers that there are.
        scale = self._scales.get(name) or Scale(len(workers))
        if name in self._stored.fixed:
            return Scale(self._stored.fixed[name])
        if seen.view is None:
            return Scale(min(max(scale.count, model.least), model.most))
        rules = Rules(
            model.least, model.most, model.max_running, plan.grow_after_seconds, plan.shrink_after_seconds
        )
        load = seen.view.loads.get(name, Load(0, 0))
        return scaled(scale, load, sum(map(seen.serves, workers)), rules, self._clock())

    def _groups(self, plan: Plan, seen: Seen) -> Iterator[_Group]:
        """All groups of equal actors, also of models that are no longer in the plan."""
        gateways, workers = seen.members("gateway"), [name for name in seen.reports if name.kind == "worker"]
        keep_workers = not self._leaving or bool(gateways)
        keep_registry = not self._leaving or bool(gateways or workers)
        yield _Group("registry", "", plan.registry, int(keep_registry))
        for name, model in plan.models.items():
            count = self._scales[name].count if keep_workers else 0
            yield _Group("worker", name, model.task, count)
        for name in sorted({worker.model for worker in workers} - plan.models.keys()):
            yield _Group("worker", name, None, 0)
        yield _Group("gateway", "", plan.gateway, 0 if self._leaving else plan.gateways)

    def _change(self, group: _Group, seen: Seen) -> None:
        names = seen.members(group.kind, group.model)
        digest = digest_of(group.task) if group.task else ""
        members = [_member(name, seen) for name in names]
        changes = next_changes(members, group.size, digest)
        for name in changes.stop:
            self._stop(name, seen)
        if group.task is not None:
            homes = [report.node for report in map(seen.reports.get, names) if report is not None]
            for number in changes.create:
                name = Name(group.kind, number, digest, group.model)
                home = emptiest(seen.nodes, homes) if group.task.resources.spread else None
                avoid = frozenset(self._avoided_nodes(group.model))
                self._actors.create(str(name), group.task, avoid, home)
                homes += [home] if home else []

    def _stop(self, name: Name, seen: Seen) -> None:
        if seen.reports[name] is None:  # it has no process to drain
            self._actors.remove(str(name))
        else:
            self._actors.stop(str(name))

    def _move_misplaced(self, plan: Plan, seen: Seen) -> None:
        """Stops workers that refuse to run on their node, if another node may be better."""
        for name, report in seen.reports.items():
            if name.kind != "worker" or report is None or not report.misplaced or report.state != "failed":
                continue
            if name.model not in plan.models or name.digest != digest_of(plan.models[name.model].task):
                continue
            until = self._clock() + _AVOIDED_SECONDS
            avoided = self._avoided.setdefault(name.model, {})
            avoided[report.node] = _Refusal(until, report.host, report.reason)
            resources = plan.models[name.model].task.resources
            better = {node.id for node in seen.nodes if fits(resources, node)} - self._avoided_nodes(
                name.model
            )
            if better:
                self._actors.stop(str(name))

    def _avoided_nodes(self, model: str) -> set[str]:
        """The ids of nodes on which the model's workers do not run."""
        now = self._clock()
        return {node for node, refusal in self._avoided.get(model, {}).items() if refusal.until > now}

    def _summarize(self, plan: Plan, seen: Seen) -> ClusterStatus:
        assert self._stored is not None  # noqa: S101 - step has checked it
        wanted = {name: scale.count for name, scale in self._scales.items()}
        refusals = {
            model: {refusal.host: refusal.reason for refusal in refused.values()}
            for model, refused in self._avoided.items()
        }
        return summarize(plan, wanted, seen, self._histories, refusals, self._stored.fixed)


def _member(name: Name, seen: Seen) -> Member:
    report = seen.reports[name]
    if report is None:
        return Member(name, serving=False, failed=True)
    stopping = report.state in ("stopping", "stopped")
    return Member(name, seen.serves(name), failed=report.state == "failed", stopping=stopping)

"""The status of the cluster: what the controller has seen, in words for the operator."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

from app.cluster.members import Name
from app.cluster.placement import why_too_large, why_waiting
from app.cluster.planning import digest_of
from app.cluster.scaling import Load
from app.cluster.structures import (
    ClusterStatus,
    MemberStatus,
    ModelPlan,
    ModelStatus,
    Node,
    Plan,
    Report,
    Task,
)

_HOPELESS_FAILURES = 2
"""A process that has failed this often in a row may fail for ever."""


@dataclass(frozen=True)
class View:
    """What the registry knows."""

    workers: Mapping[str, Set[str]] = field(default_factory=dict)
    """Model -> addresses of workers that serve."""
    loads: Mapping[str, Load] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What the controller has seen in one step."""

    nodes: Sequence[Node]
    reports: Mapping[Name, Report | None]
    """None: the actor does not answer."""
    view: View | None
    """None: the registry does not answer."""

    def members(self, kind: str, model: str = "") -> list[Name]:
        """The names of the actors in a group, by their numbers."""
        names = [name for name in self.reports if (name.kind, name.model) == (kind, model)]
        return sorted(names, key=lambda name: name.number)

    def serves(self, name: Name) -> bool:
        report = self.reports[name]
        if report is None or report.state != "running":
            return False
        match name.kind:
            case "gateway":
                return report.healthy
            case "registry":
                return self.view is not None
            case "worker":
                return self.view is not None and report.address in self.view.workers.get(name.model, ())


class Histories:
    """How often each actor's process was started again, also by Ray on another node."""

    def __init__(self) -> None:
        self._reports: dict[Name, Report] = {}
        self._before: dict[Name, int] = {}

    def note(self, reports: Mapping[Name, Report | None]) -> None:
        for name, report in reports.items():
            last = self._reports.get(name)
            if report is None:
                continue
            if last is not None and last.incarnation != report.incarnation:
                self._before[name] = self._before.get(name, 0) + last.restarts + 1
            self._reports[name] = report
        for name in self._reports.keys() - reports.keys():
            del self._reports[name]
            self._before.pop(name, None)

    def restarts(self, name: Name) -> int:
        last = self._reports.get(name)
        return self._before.get(name, 0) + (last.restarts if last else 0)

    def has_run(self, name: Name) -> bool:
        return name in self._reports


def summarize(
    plan: Plan,
    wanted: Mapping[str, int],
    seen: Seen,
    histories: Histories,
    refusals: Mapping[str, Mapping[str, str]],
    fixed: Iterable[str],
) -> ClusterStatus:
    """`wanted`: model -> number of workers. `refusals`: model -> node's address -> reason.

    `fixed`: the models whose number of workers was set.
    """
    inspect = _Inspection(seen, histories)
    models = [
        _model(name, model, wanted[name], inspect, refusals.get(name, {}), name in set(fixed))
        for name, model in plan.models.items()
    ]
    return ClusterStatus(
        seen.nodes,
        plan.registry_address,
        inspect.group("registry", plan.registry),
        inspect.group("gateway", plan.gateway),
        plan.gateways,
        models,
        leaving=sum(name.kind == "worker" and name.model not in plan.models for name in seen.reports),
    )


def _model(
    name: str,
    model: ModelPlan,
    wanted: int,
    inspect: "_Inspection",
    refusals: Mapping[str, str],
    fixed: bool,
) -> ModelStatus:
    view = inspect.seen.view or View()
    load = view.loads.get(name, Load(0, 0))
    workers = inspect.group("worker", model.task)
    return ModelStatus(
        name,
        wanted,
        model.least,
        model.most,
        fixed,
        load.running,
        load.waiting,
        workers,
        dict(refusals),
    )


@dataclass(frozen=True)
class _Inspection:
    seen: Seen
    histories: Histories

    def group(self, kind: str, task: Task) -> list[MemberStatus]:
        digest = digest_of(task)
        return [
            self._member(name, task, name.digest != digest) for name in self.seen.members(kind, task.model)
        ]

    def _member(self, name: Name, task: Task, outdated: bool) -> MemberStatus:
        report = self.seen.reports[name]
        if report is None:
            return self._unanswered(name, task, outdated)
        state = self._state(name, report)
        return MemberStatus(
            name.number,
            report.host,
            report.address,
            state,
            self.histories.restarts(name),
            report.failures,
            report.reason if state in ("failed", "starting") else "",
            outdated,
            hopeless=state != "serving" and report.failures >= _HOPELESS_FAILURES,
        )

    def _unanswered(self, name: Name, task: Task, outdated: bool) -> MemberStatus:
        too_large = why_too_large(task.resources, self.seen.nodes)
        reason = too_large or why_waiting(task.resources)
        if self.histories.has_run(name):
            reason = "its node or its actor is lost; Ray starts it again"
        restarts = self.histories.restarts(name)
        return MemberStatus(
            name.number, "", "", "waiting", restarts, 0, reason, outdated, hopeless=too_large is not None
        )

    def _state(self, name: Name, report: Report) -> Literal["starting", "serving", "failed", "stopping"]:
        if report.state in ("stopping", "stopped"):
            return "stopping"
        if report.state == "failed":
            return "failed"
        return "serving" if self.seen.serves(name) else "starting"

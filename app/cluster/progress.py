"""A status in words, and whether the cluster is as the plan says. Pure functions."""

from collections.abc import Iterator, Sequence

from app.cluster.structures import ClusterStatus, MemberStatus, ModelStatus


def is_settled(status: ClusterStatus) -> bool:
    """Whether exactly the wanted processes run, and all of them serve."""
    groups = [
        (status.registry, 1),
        (status.gateways, status.wanted_gateways),
        *((model.workers, model.wanted) for model in status.models),
    ]
    return not status.leaving and all(
        len(members) == wanted and all(map(_is_ready, members)) for members, wanted in groups
    )


def is_hopeless(status: ClusterStatus) -> bool:
    """Whether all that is missing is missing for ever, unless somebody changes something."""
    workers = [worker for model in status.models for worker in model.workers]
    members = [*status.registry, *workers]
    # A gateway is healthy once a model has a worker.
    if any(map(_is_ready, workers)):
        members += status.gateways
    # Those with the old configuration wait for those with the new one.
    unfinished = [each for each in members if not _is_ready(each) and not each.outdated]
    moving = any(each.state == "stopping" for each in members)
    complete = all(len(model.workers) == model.wanted for model in status.models)
    return bool(unfinished) and complete and not moving and all(each.hopeless for each in unfinished)


def describe(status: ClusterStatus) -> Iterator[tuple[str, MemberStatus]]:
    """The name of each process for the operator, with its status."""
    for member in status.registry:
        yield "registry", member
    for model in status.models:
        for member in model.workers:
            yield f"worker {member.number} of {model.name}", member
    for member in status.gateways:
        yield f"gateway {member.number}", member


def to_text(name: str, member: MemberStatus) -> str:
    """One line about a process."""
    place = member.address or member.node
    parts = [f"{name}:", *([place] if place else []), member.state]
    text = " ".join(parts)
    if member.restarts:
        text += f", restarted {member.restarts} times" if member.restarts > 1 else ", restarted once"
    if member.outdated:
        text += ", to be replaced"
    return f"{text} ({member.reason})" if member.reason else text


def to_lines(status: ClusterStatus) -> Iterator[str]:
    """The whole status."""
    yield "nodes"
    for node in status.nodes:
        yield f"  {node.host}: {node.cpus:g} CPUs, {node.gpus:g} GPUs{', head' if node.is_head else ''}"
    yield f"registry at {status.registry_address}"
    yield from _group("registry", status.registry)
    yield f"gateways: {_ready(status.gateways)} of {status.wanted_gateways} serve"
    yield from _group("gateway", status.gateways)
    for model in status.models:
        yield _summary(model)
        yield from _group("worker", model.workers)
        yield from (f"  not on {line}" for line in refusals(model))
    if status.leaving:
        yield f"{status.leaving} workers of models that are no longer in the configuration are stopping"


def refusals(model: ModelStatus) -> Sequence[str]:
    """The nodes on which the model does not run, and why."""
    return [f"{host}: {reason}" for host, reason in sorted(model.refusals.items())]


def _summary(model: ModelStatus) -> str:
    bounds = "fixed" if model.fixed else f"{model.least} to {model.most}"
    return (
        f"model {model.name}: {_ready(model.workers)} of {model.wanted} workers serve ({bounds}), "
        f"{model.running} requests run, {model.waiting} wait"
    )


def _group(kind: str, members: Sequence[MemberStatus]) -> Iterator[str]:
    for member in members:
        yield f"  {to_text(f'{kind} {member.number}', member)}"


def _ready(members: Sequence[MemberStatus]) -> int:
    return sum(map(_is_ready, members))


def _is_ready(member: MemberStatus) -> bool:
    return member.state == "serving" and not member.outdated

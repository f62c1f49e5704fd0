"""Whether what a process reserves fits on the nodes. Ray chooses the node."""

from collections.abc import Sequence

from app.cluster.structures import Node, Resources


def fits(resources: Resources, node: Node) -> bool:
    """Whether an empty node would be large enough."""
    on_node = node.is_head or not resources.on_head
    return on_node and resources.gpus <= node.gpus and resources.cpus <= node.cpus


def emptiest(nodes: Sequence[Node], homes: Sequence[str]) -> str | None:
    """The id of the node with the fewest members, if there is one. `homes`: the node of each member."""
    best = min(nodes, key=lambda node: (homes.count(node.id), node.is_head), default=None)
    return best.id if best else None


def why_too_large(resources: Resources, nodes: Sequence[Node]) -> str | None:
    """A line that says why no node is large enough. None: at least one is."""
    if any(fits(resources, node) for node in nodes):
        return None
    if resources.gpus:
        most = max((node.gpus for node in nodes), default=0)
        return f"needs {resources.gpus} GPUs on one node; the largest node has {most:g}"
    if resources.cpus:
        most = max((node.cpus for node in nodes), default=0)
        return f"needs {resources.cpus:g} CPUs on one node; the largest node has {most:g}"
    return "needs the head node, which is gone"


def why_waiting(resources: Resources) -> str:
    """What an actor waits for that Ray has not started, though a node is large enough."""
    if resources.gpus:
        return f"waits for a node with {resources.gpus} free GPUs"
    if resources.cpus:
        return f"waits for a node with {resources.cpus:g} free CPUs"
    return "waits for a node"

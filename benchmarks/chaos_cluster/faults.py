"""Kills processes and nodes of a cluster, and measures how long it takes until all serve again."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.chaos_cluster.loopback import LoopbackCluster, process_at

SERVED_SECONDS = 60.0


@dataclass
class Fault:
    """What was killed, and when. Times are of time.monotonic()."""

    kind: str
    at: float
    gateways: frozenset[str]
    """The URLs of the gateways that were killed with it."""
    served: float | None = None
    """When all served again. None: not yet."""

    def covers(self, url: str, begin: float, end: float) -> bool:
        """Whether the gateway was killed or down at some time between `begin` and `end`."""
        return url in self.gateways and end >= self.at and (self.served is None or begin <= self.served)


class Faults:
    """Injects one fault after the other."""

    def __init__(self, cluster: LoopbackCluster, rng: random.Random) -> None:
        self.injected: list[Fault] = []
        self._cluster = cluster
        self._rng = rng
        self._kinds: dict[str, Callable[[Mapping[str, Any]], Fault]] = {
            "worker process killed": lambda status: self._kill(status, "worker process killed"),
            "worker's actor killed": lambda status: self._kill(status, "worker's actor killed"),
            "gateway killed": lambda status: self._kill(status, "gateway killed"),
            "registry killed": lambda status: self._kill(status, "registry killed"),
            "node killed": self._kill_node,
        }

    def inject(self, number: int) -> None:
        """One fault, from the first kind to the last and over again. Returns when all serve again.

        Raises ClusterFaultError if that takes longer than SERVED_SECONDS.
        """
        kind = list(self._kinds)[number % len(self._kinds)]
        fault = self._kinds[kind](self._cluster.status())
        self._cluster.wait_until_served(SERVED_SECONDS)
        fault.served = time.monotonic()
        for host in {"127.0.0.2", "127.0.0.3", "127.0.0.4"} - set(self._cluster.hosts):
            self._cluster.add_node(host)

    def _kill(self, status: Mapping[str, Any], kind: str) -> Fault:
        if kind.startswith("worker"):
            address = self._rng.choice(status["models"][0]["workers"])["address"]
        elif kind.startswith("gateway"):
            address = self._rng.choice(status["gateways"])["address"]
        else:
            address = status["registry_address"]
        process = process_at(address)
        victim = process.parent() if "actor" in kind else process
        fault = self._note(kind, frozenset({address} if kind.startswith("gateway") else ()))
        victim.kill()
        return fault

    def _kill_node(self, status: Mapping[str, Any]) -> Fault:
        """Not the head node: without it, Ray ends on all nodes."""
        host = self._rng.choice(self._cluster.hosts[1:])
        lost = frozenset(each["address"] for each in status["gateways"] if each["node"] == host)
        fault = self._note("node killed", lost)
        self._cluster.kill_node(host)
        return fault

    def _note(self, kind: str, gateways: frozenset[str]) -> Fault:
        fault = Fault(kind, time.monotonic(), gateways)
        self.injected.append(fault)
        return fault

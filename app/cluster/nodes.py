"""How a host becomes a node of a Ray cluster with token authentication."""

import os
import sys
from collections.abc import Sequence

from app.cluster.errors import ClusterError
from app.cluster.ray_edge import create_token, import_ray

_ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Actors, and so the processes that they start, would have less of the CPU than others: nice 15.
    "RAY_worker_niceness": "0",
    # A node that has lost its network is noticed after 5 s, and not after 30.
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


def start_command(head: str | None, options: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """`ray start`, and its environment. What the environment sets already stays.

    `head`: HOST:PORT of the head node. None: this is the head node. `options`: further ones.

    Raises ClusterError if Ray is not installed, or must not ask for a token.
    """
    import_ray()
    environment = {**_ENVIRONMENT, **os.environ}
    if environment["RAY_AUTH_MODE"] != "token":
        raise ClusterError(
            "RAY_AUTH_MODE must be token; without it, everybody in the network can run code here"
        )
    place = ("--head", "--include-dashboard=false") if head is None else ("--address", head)
    fixed = ("start", "--block", "--disable-usage-stats", *place)
    return [sys.executable, "-m", "ray.scripts.scripts", *fixed, *options], environment


def make_token() -> None:
    """Makes ~/.ray/auth_token, which only this user can read, if this host has no token yet."""
    create_token()

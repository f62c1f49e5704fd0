"""`tiller cluster`: gateways, workers and a registry on the nodes of a Ray cluster."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from app import __version__
from app.cluster import nodes
from app.cluster.errors import ClusterError
from app.cluster.planning import make_plan
from app.cluster.progress import describe, is_hopeless, is_settled, refusals, to_lines, to_text
from app.cluster.ray_edge import ControllerHandle, RayActors, connect, disconnect, living_nodes
from app.cluster.structures import ClusterStatus, pack, unpack
from app.commands.errors import FAILED, MISUSED, CommandError, UsageError, exit_on_errors, fail
from app.commands.output import AsJson, print_json
from app.configuration import (
    SettingsError,
    default_config,
    read_settings,
    refuse_missing_concepts,
    refuse_open_network,
)
from app.settings import Settings

_POLL_SECONDS = 1.0
_STOP_SECONDS = 60.0
"""How long the processes may take to end, beyond the time to drain."""

Config = Annotated[
    Path | None, typer.Option(help="Configuration file (YAML), the same as for `tiller serve`.")
]
Address = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Head node of the Ray cluster. Default: the one of this host."),
]


def cluster_commands() -> typer.Typer:
    commands = typer.Typer(
        no_args_is_help=True, help="Serve from several hosts: place, scale and watch processes with Ray."
    )
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True}
    commands.command("node", context_settings=passed_on)(node)
    commands.command("up")(up)
    commands.command("status")(status)
    commands.command("scale")(scale)
    commands.command("down")(down)
    return commands


def node(
    context: typer.Context,
    head: Annotated[bool, typer.Option("--head", help="Start the first node of a cluster.")] = False,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Head node of the cluster that this host joins.")
    ] = None,
) -> None:
    """Make this host a node of a Ray cluster, with token authentication, until a signal ends it.

    The head node makes the token if there is none: copy ~/.ray/auth_token to the other hosts.
    Further options go to `ray start`, such as --num-gpus or --node-ip-address.
    """
    with exit_on_errors(ClusterError):
        if head == bool(address):
            raise UsageError("give either --head or --address")
        command, environment = nodes.start_command(address, context.args)
        if head:
            nodes.make_token()
        os.execve(sys.executable, command, environment)  # noqa: S606 - without a shell


def up(
    config: Config = None,
    address: Address = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait until all serves.")] = 600.0,
) -> None:
    """Start what the configuration says on the nodes, or change what runs there already.

    What has not changed goes on. Waits until each process serves. Exit status: 0 if all serve, 1 if not, 2 if
    the configuration is wrong.
    """
    with _connected(config, address, for_servers=True) as settings:
        present = living_nodes()
        head = next((each.host for each in present if each.is_head), None)
        if head is None:
            raise CommandError("the Ray cluster has no head node")
        plan = make_plan(settings, head, any(each.gpus for each in present))
        controller = ControllerHandle()
        controller.create(_controller_directory(settings), __version__)
        controller.call("apply", pack(plan), seconds=60)
        _wait_until_settled(controller, timeout)


def status(config: Config = None, address: Address = None, as_json: AsJson = False) -> None:
    """Show the nodes, and the state of each process."""
    with _connected(config, address):
        found = _status(ControllerHandle())
        if as_json:
            print_json(msgspec.to_builtins(found))
        else:
            typer.echo("\n".join(to_lines(found)))


def scale(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    count: Annotated[int, typer.Argument(min=0, max=1000, help="Number of workers.")],
    config: Config = None,
    address: Address = None,
) -> None:
    """Set the number of a model's workers, until the next `tiller cluster up`."""
    with _connected(config, address):
        refusal = ControllerHandle().call("scale", model, count)
        if refusal is not None:
            raise CommandError(refusal)
        typer.echo(f"{model}: {count} workers; `tiller cluster status` shows when they serve")


def down(config: Config = None, address: Address = None) -> None:
    """Stop all processes on all nodes. Running requests may finish first. Ray itself goes on."""
    with _connected(config, address) as settings:
        controller, actors = ControllerHandle(), RayActors()
        if controller.exists():
            _drain(controller, actors, settings.server.drain_seconds)
        for name in actors.names():
            actors.remove(name)
        typer.echo("all processes have ended")


@contextmanager
def _connected(config: Path | None, address: str | None, for_servers: bool = False) -> Iterator[Settings]:
    """The settings, while this process is connected to Ray. `for_servers`: checks them for a server, too."""
    with exit_on_errors(ClusterError):
        with exit_on_errors(SettingsError, status=MISUSED):
            settings = read_settings(default_config(config))
            if for_servers:
                refuse_open_network(settings)
                refuse_missing_concepts(settings)
        connect(address, settings.cluster.ray_authentication)
        try:
            yield settings
        finally:
            disconnect()


def _controller_directory(settings: Settings) -> str:
    directory = f"{settings.data_directory}/cluster"
    return directory if directory.startswith("~") else os.path.abspath(directory)


def _status(controller: ControllerHandle) -> ClusterStatus:
    """Raises ClusterError."""
    found = controller.call("status")
    if found is None:
        raise ClusterError("Tiller does not run on this Ray cluster; `tiller cluster up` starts it")
    return unpack(found, ClusterStatus)


def _wait_until_settled(controller: ControllerHandle, seconds: float) -> None:
    """Shows what changes. Ends the command with status 1 if not everything serves in time."""
    deadline = time.monotonic() + seconds
    shown: dict[str, str] = {}
    while True:
        found = _status(controller)
        _show_changes(found, shown)
        if is_settled(found):
            break
        if is_hopeless(found) or time.monotonic() > deadline:
            fail("\n".join(_faults(found)), FAILED)
        time.sleep(_POLL_SECONDS)
    for gateway in found.gateways:
        typer.echo(gateway.address)


def _show_changes(found: ClusterStatus, shown: dict[str, str]) -> None:
    """Prints what has changed to stderr. stdout gets only the URLs."""
    lines = {name: to_text(name, member) for name, member in describe(found)}
    lines |= {
        f"{model.name} {line}": f"{model.name} does not run on {line}"
        for model in found.models
        for line in refusals(model)
    }
    for name, line in lines.items():
        if shown.get(name) != line:
            typer.echo(line, err=True)
    shown.update(lines)


def _faults(found: ClusterStatus) -> Iterator[str]:
    """One line about each process that does not serve."""
    for name, member in describe(found):
        if member.state != "serving" or member.outdated:
            yield to_text(name, member)
    for model in found.models:
        yield from (f"{model.name} does not run on {line}" for line in refusals(model))


def _drain(controller: ControllerHandle, actors: RayActors, seconds: float) -> None:
    """Lets the controller end all processes. Returns early if it cannot."""
    deadline = time.monotonic() + 2 * seconds + _STOP_SECONDS  # gateways first, then workers
    try:
        controller.call("shut_down")
    except ClusterError as error:
        typer.echo(f"tiller: {error}; the processes end without draining", err=True)
        return
    while len(actors.names()) > 1 and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)

"""`tiller registry`: runs what several servers share."""

import asyncio
import logging
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from app import __version__
from app.commands.errors import MISUSED, CommandError, check_listening, exit_on_errors
from app.commands.output import AsJson, print_json
from app.configuration import SettingsError, default_config, read_settings
from app.errors import StartError
from app.registry.building import key_for
from app.registry.connection import status as ask_status
from app.registry.listening import listening
from inference.interface.logs import set_up_logging
from inference.interface.registry import ModelLoad

_log = logging.getLogger(__name__)


def registry_commands() -> typer.Typer:
    commands = typer.Typer(
        no_args_is_help=True, help="Run the registry, through which servers find workers and share concepts."
    )
    commands.command("serve")(serve)
    commands.command("status")(status)
    return commands


def status(
    config: Annotated[
        Path | None, typer.Option(help="Configuration file (YAML) with the setting `registry`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print which servers and workers the registry knows, and the load of each model."""
    with exit_on_errors(StartError):
        with exit_on_errors(SettingsError, status=MISUSED):
            settings = read_settings(default_config(config))
        if settings.registry is None:
            raise CommandError("the setting registry must name the address of the registry")
        key = key_for(settings.registry, settings)
        found = asyncio.run(ask_status(settings.registry, key))
    if as_json:
        document = msgspec.to_builtins(found)
        print_json({key: value for key, value in document.items() if key not in ("type", "request_id")})
        return
    typer.echo(f"servers: {', '.join(found.gateways) or 'none'}")
    typer.echo(f"created concepts: {found.concepts}")
    for model in sorted({*found.workers, *found.loads}):
        load = found.loads.get(model, ModelLoad())
        addresses = ", ".join(found.workers.get(model, [])) or "none"
        typer.echo(f"{model}: {load.running} running, {load.waiting} waiting; workers: {addresses}")


def serve(
    listen: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Where members reach the registry: tcp://HOST:PORT or ipc:///PATH."
        ),
    ],
    config: Annotated[
        Path | None, typer.Option(help="Configuration file (YAML), the same as for `tiller serve`.")
    ] = None,
) -> None:
    """Run the registry until a signal ends it.

    It keeps the concepts that callers create in the directory `registry` of `data_directory`. Servers and
    workers use it if their setting `registry` names its address. At tcp://, all need the same `worker_key`.
    """
    from app.registry.server import Registry  # imports NumPy

    with exit_on_errors(StartError):
        with exit_on_errors(SettingsError, status=MISUSED):
            settings = read_settings(default_config(config))
        check_listening(listen)
        if settings.worker_key_file is None and not listen.startswith("ipc:"):
            raise CommandError(
                "worker_key must be set for a registry at tcp://; `tiller worker new-key` makes one"
            )
        with listening(listen, key_for(listen, settings)) as socket:
            set_up_logging(settings.log_config)
            registry = Registry(socket, settings.registry_directory, __version__)
            _log.info("the registry serves at %s", listen)
            registry.serve()

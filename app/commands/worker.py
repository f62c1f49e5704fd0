"""`tiller worker`: runs a worker on its own, for servers on this host or on others."""

import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from app import __version__
from app.commands.errors import MISUSED, CommandError, check_listening, exit_on_errors
from app.configuration import SettingsError, default_config, read_settings, refuse_missing_source
from app.errors import StartError
from app.settings import ServedModelSettings, Settings
from app.workers.process import environment_of
from inference.interface.config import ConfigError, StandingConfig
from inference.interface.worker_key import create_key, read_key


def worker_commands() -> typer.Typer:
    commands = typer.Typer(
        no_args_is_help=True, help="Run a worker on its own, and make the key that workers and servers share."
    )
    commands.command("serve")(serve)
    commands.command("new-key")(new_key)
    return commands


def serve(
    listen: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Where servers reach the worker: tcp://HOST:PORT or ipc:///PATH."
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Name of the model. Default: the only one in the configuration.")
    ] = None,
    advertise: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="The address to announce at the registry, if servers reach the worker at another one.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration file (YAML), the same as for `tiller serve`.")
    ] = None,
) -> None:
    """Run a worker that serves one model to any number of servers.

    A server uses it if the model's setting `workers` names its address, or if both have the same setting
    `registry`. At tcp://, all need the same `worker_key`.
    """
    with exit_on_errors(StartError, ConfigError):
        with exit_on_errors(SettingsError, status=MISUSED):
            settings = read_settings(default_config(config))
            served = _chosen(settings, model)
            refuse_missing_source(served, served.name)
        advertised = advertise or listen
        for address in (listen, advertised):
            check_listening(address)
        if settings.registry and _is_for_all_interfaces(advertised):
            raise CommandError(
                f"--advertise must say at which address servers reach the worker: {advertised} is none"
            )
        key_file = settings.worker_key_file
        if key_file is not None:
            read_key(key_file)
        elif not listen.startswith("ipc:"):
            raise CommandError(
                "worker_key must be set for a worker at tcp://; `tiller worker new-key` makes one"
            )
        # `alone`: the devices of other models are not this host's.
        engine = settings.alone(served).engine_config(served)
        drain_seconds = settings.server.drain_seconds
        config_of_worker = StandingConfig(
            engine,
            endpoint=listen,
            version=__version__,
            model=served.name,
            key_file=_for_tcp(listen, key_file),
            drain_seconds=drain_seconds,
            registry=settings.registry,
            registry_key_file=_for_tcp(settings.registry or "", key_file),
            advertised=advertised,
        )
        _become(config_of_worker)


def new_key(file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")]) -> None:
    """Write a new worker key, for the setting `worker_key` on all hosts with servers or workers."""
    with exit_on_errors():
        if file.exists():
            raise CommandError(f"{file}: already exists")
        try:
            create_key(file)
        except OSError as error:
            raise CommandError(f"{file}: cannot be written: {error.strerror}") from None


def _chosen(settings: Settings, name: str | None) -> ServedModelSettings:
    """Raises CommandError."""
    models = {model.name: model for model in settings.served_models}
    if name is None and len(models) == 1:
        return settings.served_models[0]
    if name not in models:
        what = "--model must name one of several models" if name is None else f"there is no model {name}"
        raise CommandError(f"{what}; there are: {', '.join(models)}")
    return models[name]


def _for_tcp(address: str, key_file: Path | None) -> str | None:
    return str(key_file) if key_file and address.startswith("tcp:") else None


def _is_for_all_interfaces(address: str) -> bool:
    return address.startswith(("tcp://0.0.0.0:", "tcp://0:", "tcp://*:", "tcp://[::]:"))


def _become(config: StandingConfig) -> None:
    """Replaces this process by the worker, which reads its configuration from stdin."""
    reading, writing = os.pipe()
    os.write(writing, msgspec.json.encode(config))  # fits in the pipe
    os.close(writing)
    os.dup2(reading, 0)
    command = [sys.executable, "-P", "-m", "inference.standing_worker"]
    os.execve(sys.executable, command, environment_of(config.engine))  # noqa: S606 - without a shell

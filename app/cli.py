"""The `tiller` command and its subcommands."""

import sys

import typer

from app.commands.access_token import access_token_commands
from app.commands.bench import bench
from app.commands.chat.command import chat
from app.commands.cluster import cluster_commands
from app.commands.concept import concept_commands
from app.commands.doctor.command import doctor
from app.commands.health import health
from app.commands.registry import registry_commands
from app.commands.serve import serve
from app.commands.worker import worker_commands


def main() -> None:
    try:
        build_commands()()
    except KeyboardInterrupt:
        sys.exit(130)


def build_commands() -> typer.Typer:
    tiller = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
    tiller.command("serve")(serve)
    tiller.command("chat")(chat)
    tiller.command("health")(health)
    tiller.command("doctor")(doctor)
    tiller.add_typer(access_token_commands(), name="token")
    tiller.add_typer(concept_commands(), name="concept")
    tiller.add_typer(worker_commands(), name="worker")
    tiller.add_typer(registry_commands(), name="registry")
    tiller.add_typer(cluster_commands(), name="cluster")
    tiller.command("bench")(bench)
    return tiller


if __name__ == "__main__":
    main()

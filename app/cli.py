"""The `tiller` command. An operator's mistake is one line on stderr, never a traceback."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from app.commands.bench import bench
from app.commands.concept import concept_commands
from app.commands.health import health
from app.commands.token import token_commands

_EXIT_FAILED = 1
_EXIT_MISUSED = 2


def main() -> None:
    try:
        build_commands()()
    except KeyboardInterrupt:
        sys.exit(130)


def build_commands() -> typer.Typer:
    tiller = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    tiller.command("serve")(serve)
    tiller.command("health")(health)
    tiller.add_typer(token_commands(), name="token")
    tiller.add_typer(concept_commands(), name="concept")
    tiller.command("bench")(bench)
    return tiller


def serve(
    config: Annotated[
        Path | None, typer.Option(help="YAML file. Default: configs/quickstart.yaml, if there is one here.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Overrides server.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Overrides server.port.")] = None,
) -> None:
    """Serve a chat model over HTTP."""
    # Imported here, where Ctrl-C is already handled: it takes about a second.
    from app import server
    from app.configuration import SettingsError, default_config, load_settings
    from app.errors import StartError

    given = {"host": host, "port": port}
    overrides = {key: value for key, value in given.items() if value is not None}
    try:
        server.run(load_settings(default_config(config), server=overrides))
    except SettingsError as error:
        _fail(str(error), _EXIT_MISUSED)
    except StartError as error:
        _fail(str(error), _EXIT_FAILED)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"tiller: {message}", err=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    main()

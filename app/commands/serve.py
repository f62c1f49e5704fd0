"""`tiller serve`: starts the server."""

from pathlib import Path
from typing import Annotated

import typer

from app.commands.errors import MISUSED, exit_on_errors
from inference.interface.collector import keeping_all


def serve(
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration file (YAML). Default: configs/quickstart.yaml, if it exists."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Overrides server.host.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on. 0: any free port. Overrides server.port.")
    ] = None,
) -> None:
    """Serve a chat model over HTTP."""
    # The imports take half a second. Here, Ctrl-C is already handled.
    with keeping_all():
        from app import server
        from app.configuration import SettingsError, default_config, load_settings
        from app.errors import StartError

    given = {"host": host, "port": port}
    overrides = {key: value for key, value in given.items() if value is not None}
    with exit_on_errors(StartError):
        with exit_on_errors(SettingsError, status=MISUSED):
            settings = load_settings(default_config(config), server=overrides)
        server.run(settings)

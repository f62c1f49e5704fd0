"""`tiller serve`: starts the server."""

from pathlib import Path
from typing import Annotated

import typer

from app.commands.errors import MISUSED, reporting


def serve(
    config: Annotated[
        Path | None, typer.Option(help="YAML file. Default: configs/quickstart.yaml, if it exists here.")
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
    with reporting(SettingsError, status=MISUSED):
        settings = load_settings(default_config(config), server=overrides)
    with reporting(StartError):
        server.run(settings)

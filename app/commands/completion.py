"""What a shell offers when the user presses Tab: names that the server or the configuration knows.

A shell shows no errors meanwhile. So if the names cannot be found, nothing is offered. The completion code of
some shells evaluates what it is given. So a text that others wrote, such as a description, is not offered.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import typer

from app.commands.client import LOCAL, connect_blocking, content_of, reaching_server
from app.commands.errors import CommandError
from app.configuration import SettingsError, default_config, read_settings
from app.limits.access_tokens import AccessTokenFile, AccessTokenFileError
from app.schemas.concepts import ID_PREFIX

_SECONDS = 1.0
"""A person waits for the answer."""
_HARMLESS = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_./@+-]*")
"""Names that mean nothing else to any shell."""


def complete_concept(context: typer.Context, incomplete: str) -> list[str]:
    """The concepts of the server."""
    ids = _names(context, "/steering_concepts")
    if not incomplete.startswith("_"):
        ids = [concept.removeprefix(ID_PREFIX) for concept in ids]
    return _offer(ids, incomplete)


def complete_model(context: typer.Context, incomplete: str) -> list[str]:
    """The models of the server."""
    return _offer(_names(context, "/models"), incomplete)


def complete_token(context: typer.Context, incomplete: str) -> list[str]:
    """The names of the access tokens in the data directory."""
    config = context.params.get("config")
    try:
        settings = read_settings(default_config(None if config is None else Path(config)))
        tokens = AccessTokenFile(settings.token_file).read()
    except (SettingsError, AccessTokenFileError):
        return []
    return _offer((token.name for token in tokens), incomplete)


def _names(context: typer.Context, path: str) -> list[str]:
    """The ids in a list of the server that the command line names."""
    url = context.params.get("url") or os.environ.get("TILLER_URL") or LOCAL
    token = context.params.get("token") or os.environ.get("TILLER_TOKEN")
    ids: list[str] = []
    with suppress(CommandError), connect_blocking(url, token, _SECONDS) as client, reaching_server():
        ids = [str(entry["id"]) for entry in content_of(client.get(path)).get("data", [])]
    return ids


def _offer(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete) and _HARMLESS.fullmatch(name)]

"""`tiller token`: access tokens, made and revoked in the server's data directory. Needs no running server."""

import hashlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
import yaml
from filelock import FileLock
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from app.commands.errors import CommandError, reporting
from app.configuration import SettingsError, default_config, read_settings
from app.limits.access_tokens import AccessTokenFile, AccessTokenFileError
from app.settings import AccessScope, AccessToken

_DAYS = re.compile(r"([1-9][0-9]{0,4})d")

Name = Annotated[str, typer.Argument(help="Who uses it.")]
Config = Annotated[Path | None, typer.Option(help="The server's YAML file, as for `tiller serve`.")]


def token_commands() -> typer.Typer:
    commands = typer.Typer(no_args_is_help=True, help="Access tokens.")
    commands.command("new")(new)
    commands.command("list")(list_tokens)
    commands.command("revoke")(revoke)
    return commands


def new(
    name: Name,
    config: Config = None,
    expires: Annotated[str | None, typer.Option(help="A date such as 2027-01-31 (UTC), or 90d.")] = None,
    scope: Annotated[list[AccessScope] | None, typer.Option(help="May be repeated; default: all.")] = None,
    max_requests: Annotated[int | None, typer.Option(help="At the same time.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="In prompts and answers.")] = None,
    print_only: Annotated[bool, typer.Option(help="Keep nothing; print what to configure.")] = False,
) -> None:
    """Make an access token. It is shown once; the server keeps only its digest."""
    secret = "tiller_" + secrets.token_urlsafe(32)
    with _reporting_errors():
        token = AccessToken(
            name=name,
            sha256=hashlib.sha256(secret.encode()).hexdigest(),
            expires=None if expires is None else _parse_expiry(expires),
            scopes=tuple(scope or AccessScope),
            max_requests=max_requests,
            tokens_per_minute=tokens_per_minute,
        )
        where = _show_configuration(token) if print_only else _keep(token, config)
    typer.echo(f"Token: {secret}\n\n{where}")


def list_tokens(config: Config = None) -> None:
    """List the access tokens of a server, those in its configuration among them."""
    with _reporting_errors():
        settings = read_settings(default_config(config))
        made = AccessTokenFile(settings.token_file).read()
    table = Table("name", "scopes", "expires", "requests", "tokens a minute", "kept in")
    for tokens, place in ((settings.auth.tokens, "configuration"), (made, settings.token_file.name)):
        for token in tokens:
            table.add_row(*_describe(token), place)
    Console().print(table)


def revoke(name: Name, config: Config = None) -> None:
    """Make an access token worthless, at once. Requests that are in progress go on."""
    with _reporting_errors():
        settings = read_settings(default_config(config))
        with _changing(AccessTokenFile(settings.token_file)) as tokens:
            left = [token for token in tokens if token.name != name]
            if len(left) == len(tokens):
                in_configuration = any(token.name == name for token in settings.auth.tokens)
                reason = "it is in the configuration" if in_configuration else "there is no such token"
                raise CommandError(f"{name} cannot be revoked: {reason}")
            tokens[:] = left
    typer.echo(f"{name} is revoked.")


@contextmanager
def _reporting_errors() -> Iterator[None]:
    with reporting(SettingsError, AccessTokenFileError):
        try:
            yield
        except ValidationError as error:
            first = error.errors()[0]
            raise CommandError(f"{first['loc'][0]}: {first['msg']}") from None


def _parse_expiry(text: str) -> datetime:
    if days := _DAYS.fullmatch(text):
        return datetime.now(UTC).replace(microsecond=0) + timedelta(days=int(days[1]))
    try:
        expires = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(f"--expires must be a date such as 2027-01-31, or 90d, got {text!r}") from None
    return expires if expires.tzinfo else expires.replace(tzinfo=UTC)


def _show_configuration(token: AccessToken) -> str:
    entry = token.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    content = yaml.safe_dump({"auth": {"tokens": [entry]}}, sort_keys=False, allow_unicode=True)
    return f"Add to the configuration:\n\n{content}".rstrip()


def _keep(token: AccessToken, config: Path | None) -> str:
    settings = read_settings(default_config(config))
    file = AccessTokenFile(settings.token_file)
    with _changing(file) as tokens:
        if any(other.name == token.name for other in (*settings.auth.tokens, *tokens)):
            raise CommandError(f"there is a token named {token.name} already")
        tokens.append(token)
    return f"Its digest is in {file.path}. A server that runs there takes it from now on."


@contextmanager
def _changing(file: AccessTokenFile) -> Iterator[list[AccessToken]]:
    """What the list is changed to in the block is written."""
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file.path}.lock"):
            tokens = list(file.read())
            yield tokens
            file.write(tokens)
    except OSError as error:
        raise CommandError(f"{file.path}: cannot be written: {error.strerror}") from None


def _describe(token: AccessToken) -> tuple[str, ...]:
    expires = f"{token.expires:%Y-%m-%d %H:%M} UTC" if token.expires else "never"
    limits = (str(limit or "") for limit in (token.max_requests, token.tokens_per_minute))
    return token.name, " ".join(token.scopes), expires, *limits

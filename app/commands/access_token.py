"""`tiller token`: creates, lists and revokes access tokens. Works on files, and needs no running server."""

import hashlib
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
import yaml
from filelock import FileLock
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.commands.completion import complete_token
from app.commands.errors import CommandError, exit_on_errors
from app.commands.output import AsJson, print_json
from app.configuration import SettingsError, default_config, explain, read_settings
from app.limits.access_tokens import AccessTokenFile, AccessTokenFileError
from app.settings import AccessScope, AccessToken, NamedAccessToken

_DAYS = re.compile(r"([1-9][0-9]{0,4})d")

Name = Annotated[str, typer.Argument(help="Name of the access token, for example its user.")]
KnownName = Annotated[str, typer.Argument(help="Name of the access token.", autocompletion=complete_token)]
Config = Annotated[
    Path | None, typer.Option(help="Configuration file (YAML), the same as for `tiller serve`.")
]


def access_token_commands() -> typer.Typer:
    commands = typer.Typer(no_args_is_help=True, help="Create, list and revoke access tokens.")
    commands.command("new")(new)
    commands.command("list")(list_tokens)
    commands.command("revoke")(revoke)
    return commands


def new(
    name: Name,
    config: Config = None,
    expires: Annotated[
        str | None,
        typer.Option(
            help="A date, such as 2027-01-31 (UTC), or a number of days, such as 90d. Default: never."
        ),
    ] = None,
    scope: Annotated[
        list[AccessScope] | None,
        typer.Option(help="What it permits. May be repeated. Default: everything."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Name of a model that it permits. May be repeated. Default: all models."),
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option(help="Limit for its concurrent requests. Default: as configured.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(help="Limit for its prompt and answer tokens per minute. Default: as configured."),
    ] = None,
    print_only: Annotated[
        bool, typer.Option(help="Print an entry for the configuration, and store nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Create an access token. The command shows it once, and stores only its digest."""
    secret = "tiller_" + secrets.token_urlsafe(32)
    with _reporting_errors():
        token = NamedAccessToken(
            name=name,
            sha256=hashlib.sha256(secret.encode()).hexdigest(),
            expires=None if expires is None else _parse_expiry(expires),
            scopes=tuple(scope or AccessScope),
            models=tuple(model) if model else None,
            max_requests=max_requests,
            tokens_per_minute=tokens_per_minute,
        )
        stored = None if print_only else _store(token, config)
    if as_json:
        where = _entry(token) if stored is None else {"stored_in": str(stored.file)}
        print_json({"token": secret, **_document(token), **where})
        return
    explanation = _show_configuration(token) if stored is None else stored.explanation
    typer.echo(f"Token: {secret}\n\n{explanation}")


def list_tokens(config: Config = None, as_json: AsJson = False) -> None:
    """List all access tokens of a server, including those in its configuration."""
    with _reporting_errors():
        settings = read_settings(default_config(config))
        stored = AccessTokenFile(settings.token_file).read()
    origins: list[tuple[AccessToken, str]]
    origins = [(token, "configuration") for token in settings.auth.tokens]
    origins += [(token, settings.token_file.name) for token in stored]
    if as_json:
        print_json({"tokens": [{**_document(token), "stored_in": origin} for token, origin in origins]})
        return
    table = Table("name", "scopes", "models", "expires", "requests", "tokens per minute", "stored in")
    for token, origin in origins:
        table.add_row(*_describe(token), origin)
    Console().print(table)


def revoke(name: KnownName, config: Config = None) -> None:
    """Revoke an access token. A running server refuses it from now on; requests in progress go on."""
    with _reporting_errors():
        settings = read_settings(default_config(config))
        with _editing(AccessTokenFile(settings.token_file)) as tokens:
            remaining = [token for token in tokens if token.name != name]
            if len(remaining) == len(tokens):
                in_configuration = any(token.name == name for token in settings.auth.tokens)
                reason = "it is in the configuration" if in_configuration else "there is no such access token"
                raise CommandError(f"{name} cannot be revoked: {reason}")
            tokens[:] = remaining
    typer.echo(f"{name} is revoked.")


@contextmanager
def _reporting_errors() -> Iterator[None]:
    with exit_on_errors(SettingsError, AccessTokenFileError):
        try:
            yield
        except ValidationError as error:
            raise CommandError(explain(error.errors()[0])) from None


def _parse_expiry(text: str) -> datetime:
    if days := _DAYS.fullmatch(text):
        return datetime.now(UTC).replace(microsecond=0) + timedelta(days=int(days[1]))
    try:
        expires = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(
            f"--expires must be a date such as 2027-01-31, or days such as 90d, got {text!r}"
        ) from None
    return expires if expires.tzinfo else expires.replace(tzinfo=UTC)


def _document(token: AccessToken) -> dict[str, object]:
    """What `--json` prints about an access token. Its digest is of no use to people."""
    return token.model_dump(mode="json", exclude={"sha256"})


def _entry(token: AccessToken) -> dict[str, object]:
    """The entry for the configuration."""
    entry = token.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return {"configuration": {"auth": {"tokens": [entry]}}}


def _show_configuration(token: AccessToken) -> str:
    content = yaml.safe_dump(_entry(token)["configuration"], sort_keys=False, allow_unicode=True)
    return f"Add to the configuration:\n\n{content}".rstrip()


@dataclass(frozen=True)
class _Stored:
    file: Path
    explanation: str


def _store(token: AccessToken, config: Path | None) -> _Stored:
    settings = read_settings(default_config(config))
    file = AccessTokenFile(settings.token_file)
    was_open = not settings.has_access_tokens
    with _editing(file) as tokens:
        if any(other.name == token.name for other in (*settings.auth.tokens, *tokens)):
            raise CommandError(f"an access token named {token.name} already exists")
        tokens.append(token)
    explanation = f"Its digest is stored in {file.path}. A running server accepts it from now on."
    if was_open:
        explanation += "\nIt is the first one: callers without an access token are now refused."
    return _Stored(file.path, explanation)


@contextmanager
def _editing(file: AccessTokenFile) -> Iterator[list[AccessToken]]:
    """Yields the stored access tokens. Writes the list, as the block has changed it. Raises CommandError."""
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
    return _printable(token.name), " ".join(token.scopes), _models(token), expires, *limits


def _models(token: AccessToken) -> str:
    return "all" if token.models is None else " ".join(map(_printable, token.models))


def _printable(name: str) -> str:
    """The name for a table of rich: neither its characters nor rich's markup change anything but its cell."""
    return escape(name if name.isprintable() and name == name.strip() else repr(name))

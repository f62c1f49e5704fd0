"""The settings of access tokens."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from app.settings.section import PositiveInt, Section, check_different


class AccessScope(StrEnum):
    """What an access token permits. Every access token permits the routes of models."""

    CHAT = "chat"
    """Permits chats and the tokenizer, and reading steering concepts."""
    CONCEPTS = "concepts"
    """Permits creating and deleting steering concepts, and reading them."""
    METRICS = "metrics"
    """Permits reading the metrics."""


def _check_token_name(name: str) -> str:
    if not name.isprintable() or name != name.strip():
        raise ValueError("must have printable characters only, and no space at either end")
    return name


def _in_utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


class AccessToken(Section):
    """An access token that `tiller token new` creates. Only its digest is stored, never the secret."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    """Who uses the access token. Appears in the log."""
    sha256: Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{64}\z")]
    """Digest of the secret, in hex."""
    expires: Annotated[datetime, AfterValidator(_in_utc)] | None = None
    """End of its validity. A time without a time zone is in UTC. None: it does not expire."""
    scopes: Annotated[tuple[AccessScope, ...], Field(min_length=1)] = tuple(AccessScope)
    """What it permits. Default: everything."""
    models: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The names of the models that it permits. None: all."""
    max_requests: PositiveInt | None = None
    """Overrides LimitSettings.max_requests. None: that limit applies."""
    tokens_per_minute: PositiveInt | None = None
    """Overrides LimitSettings.tokens_per_minute. None: that limit applies."""


class NamedAccessToken(AccessToken):
    """An access token that is in the configuration, or new. A token file may have any names."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(_check_token_name)]


class AuthSettings(Section):
    """Access tokens in the configuration. `tiller token new` stores others in Settings.token_file."""

    tokens: Annotated[
        tuple[NamedAccessToken, ...],
        AfterValidator(check_different("name")),
        AfterValidator(check_different("sha256")),
    ] = ()
    """Empty, and no token file: the server accepts every caller, and must listen on a loopback address."""
    open_metrics: bool = False
    """True: /metrics needs no access token."""

"""The gateway's configuration: frozen, built once from a YAML file and TILLER_* variables.

A mistake in it is a SettingsError of one line that names the key and the rule.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.exceptions import SettingsError as SourceError

from app.errors import shorten
from inference.config import Device, DType, EngineConfig, LogFormat, LogLevel, Quantization

ENVIRONMENT_PREFIX = "TILLER_"
# `tiller concept` reads it, which is a client. Whoever sets it for a whole shell can start servers there.
_CLIENTS_VARIABLE = "TILLER_TOKEN"
# Kubernetes sets these in every container where a service is called "tiller".
_SERVICE_LINK = re.compile(r"TILLER_(SERVICE|PORT)(_(?!_)|$)")


_DEFAULT_CONFIG = Path("configs/quickstart.yaml")


class SettingsError(Exception):
    """The settings cannot be used; the message is one line for the operator."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


Origin = Annotated[str, StringConstraints(pattern=r"\A(\*|[a-z][a-z0-9+.-]*://[^/\s]+)\z")]


class TlsSettings(Section):
    """Files in PEM format. The key must not be encrypted."""

    certificate: str
    """With the intermediate ones after it."""
    key: str


class ServerSettings(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes any free port."""
    max_body_bytes: PositiveInt = 8 * 2**20
    max_header_bytes: PositiveInt = 32 * 2**10
    """Of a request's target and headers together."""
    max_headers: PositiveInt = 100
    header_seconds: PositiveFloat = 10.0
    """How long a new connection, and then a request's headers, may take to arrive whole."""
    body_seconds: PositiveFloat = 60.0
    """How long a request's body may take, after its headers."""
    drain_seconds: Annotated[float, Field(ge=0)] = 5.0
    """How long running requests may go on after the server was told to stop."""
    stall_seconds: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    """A connection whose client takes nothing of what is sent to it for so long is cut."""
    cors_origins: tuple[Origin, ...] = ()
    """Whose pages may call from a browser, such as `https://example.org`; `*`: everybody's."""
    tls: TlsSettings | None = None
    """None: plain HTTP."""


class ModelSettings(Section):
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "smollm2-135m-instruct"
    """What requests call the model."""
    source: Annotated[str, StringConstraints(min_length=1)] = "embedded"
    """ "embedded", a directory, or a Hugging Face hub id."""
    description: str = ""


class EngineSettings(Section):
    """How many workers, and the fields of EngineConfig; see there for what they mean."""

    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Workers, each with all that is configured here to itself."""
    device: Device = "auto"
    dtype: DType = "auto"
    quantization: Quantization = "none"
    threads: PositiveInt | None = None
    context_length: PositiveInt | None = None
    block_size: PositiveInt = 16
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = None
    max_batch_tokens: PositiveInt = 512
    max_running: PositiveInt = 256
    max_queued: Annotated[int, Field(ge=0)] = 1024
    nice_ageing_seconds: Annotated[float, Field(ge=0)] = 30.0
    max_step_seconds: Annotated[float, Field(ge=3)] = 300.0
    steering_blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    seed: int | None = None


class LimitSettings(Section):
    """What requests may ask for."""

    max_n: PositiveInt = 16
    max_messages: PositiveInt = 4096
    max_logit_bias: PositiveInt = 1024
    """Tokens that one request may bias."""
    max_wait_seconds: PositiveFloat = 300.0
    """How long a request may wait for its first token."""
    max_requests: PositiveInt | None = None
    """Of one access token, in progress at the same time. None: as many as the engine takes."""
    tokens_per_minute: PositiveInt | None = None
    """Of one access token, in prompts and answers."""
    max_examples: PositiveInt = 1000
    """Pairs of one steering concept."""
    max_example_characters: PositiveInt = 4000
    max_concept_tokens: PositiveInt = 131_072
    """In all texts of a concept together."""
    max_concepts: PositiveInt = 1000
    """Created ones, of all callers together."""


class SteeringSettings(Section):
    concepts: str = "configs/concepts"
    """Directory of the shipped concepts."""
    train_at_start: bool = True
    """Train all concepts while there is nothing else to do; else each when it is first asked for."""


class LogSettings(Section):
    """What goes to stderr, of the gateway and of its workers."""

    format: LogFormat = "text"
    """ "json": one object a line."""
    level: LogLevel = "info"
    texts: bool = False
    """Whether chats are logged with all that was said in them. Access tokens never are."""


class TokenScope(StrEnum):
    """What an access token lets its bearer do, besides looking at models and concepts."""

    CHAT = "chat"
    CONCEPTS = "concepts"
    """Making and deleting steering concepts."""
    METRICS = "metrics"


def _in_utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


class AccessToken(Section):
    """`tiller token new` makes one. The token itself is kept nowhere."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    sha256: Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{64}\z")]
    expires: Annotated[datetime, AfterValidator(_in_utc)] | None = None
    """It is good until then. Without a time zone: UTC."""
    scopes: Annotated[tuple[TokenScope, ...], Field(min_length=1)] = tuple(TokenScope)
    max_requests: PositiveInt | None = None
    """As in LimitSettings, which it overrides; so does the next."""
    tokens_per_minute: PositiveInt | None = None


class AuthSettings(Section):
    tokens: tuple[AccessToken, ...] = ()
    """None configured: everything is open, which is allowed on a loopback address only."""
    open_metrics: bool = False


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        allow_inf_nan=False,
    )

    server: ServerSettings = ServerSettings()
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    limits: LimitSettings = LimitSettings()
    auth: AuthSettings = AuthSettings()
    steering: SteeringSettings = SteeringSettings()
    log: LogSettings = LogSettings()
    cache_directory: str = "~/.cache/tiller"
    """What can be downloaded or computed again."""
    data_directory: str = "~/.local/share/tiller"
    """What cannot: the concepts that callers created, and the access tokens of `tiller token`."""

    @property
    def shipped_concepts(self) -> Path:
        return Path(self.steering.concepts).expanduser()

    @property
    def created_concepts(self) -> Path:
        return Path(self.data_directory).expanduser() / "concepts"

    @property
    def token_file(self) -> Path:
        return Path(self.data_directory).expanduser() / "tokens.json"

    @property
    def has_tokens(self) -> bool:
        """Whether callers need one. Of those in the file, the last may be revoked."""
        return bool(self.auth.tokens) or os.path.exists(self.token_file)

    @property
    def engine_config(self) -> EngineConfig:
        fields = self.engine.model_dump() | {
            "source": self.model.source,
            "cache_directory": self.cache_directory,
            "log": {"format": self.log.format, "level": self.log.level},
        }
        return msgspec.convert(fields, EngineConfig)


def default_config(given: Path | None) -> Path | None:
    """The file that a command reads."""
    return _DEFAULT_CONFIG if given is None and _DEFAULT_CONFIG.is_file() else given


def load_settings(path: Path | None, **overrides: Mapping[str, object]) -> Settings:
    """As `read_settings`, for a server. Raises SettingsError also for what only a server may not have."""
    settings = read_settings(path, **overrides)
    _refuse_open_network(settings)
    _refuse_missing_concepts(settings)
    return settings


def read_settings(path: Path | None, **overrides: Mapping[str, object]) -> Settings:
    """The defaults, overridden by the file, then by the environment, then by `overrides`.

    Raises SettingsError.
    """
    _refuse_unknown_variables()
    given = {} if path is None else _read_mapping(path)
    try:
        settings = _settings_over(given)(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        where = "settings" if path is None else str(path)
        raise SettingsError(f"{where}: {_explain(error.errors()[0])}") from None
    except SourceError as error:
        raise SettingsError(f"environment: {error}") from None
    return settings


def _settings_over(file: dict[str, Any]) -> type[Settings]:
    """Settings that take from `file` what neither the caller nor the environment gives."""

    class FileSettings(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, file)

    return FileSettings


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsError(f"{path}: must be a mapping of sections, got {shorten(content)}")
    return {key: value for key, value in content.items() if value is not None}


def _refuse_unknown_variables() -> None:
    """pydantic-settings looks only for the variables that it knows, so a typing mistake would pass."""
    for name in os.environ:
        if not name.startswith(ENVIRONMENT_PREFIX) or _SERVICE_LINK.match(name) or name == _CLIENTS_VARIABLE:
            continue
        section = name.removeprefix(ENVIRONMENT_PREFIX).partition("__")[0].lower()
        if section not in Settings.model_fields:
            raise SettingsError(f"environment: {name} is no setting")


def _explain(error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key} is no setting"
    if error["type"] == "model_type":
        return f"{key} must be a mapping, got {shorten(error['input'])}"
    rule = error["msg"].replace("Input should be", "must be").replace("String should", "must")
    return f"{key} {rule}, got {shorten(error['input'])}"


def _refuse_open_network(settings: Settings) -> None:
    if settings.has_tokens or _is_loopback(settings.server.host):
        return
    raise SettingsError(
        f"server.host {settings.server.host} can be reached by others, and there are no access tokens: "
        "make one with `tiller token new NAME`, or use 127.0.0.1"
    )


def _refuse_missing_concepts(settings: Settings) -> None:
    """The default may be missing: not everybody has our configs/ in the working directory."""
    if "concepts" in settings.steering.model_fields_set and not settings.shipped_concepts.is_dir():
        raise SettingsError(f"steering.concepts {settings.steering.concepts} is no directory")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

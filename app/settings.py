"""The gateway's configuration: frozen, built once from a YAML file and TILLER_* variables.

A mistake in it is a SettingsError of one line that names the key and the rule.
"""

import ipaddress
import itertools
import json
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
from pydantic_settings.exceptions import SettingsError as VariableError

from app.errors import shorten
from inference.config import Device, DType, EngineConfig, LogFormat, LogLevel, Quantization
from inference.directories import SourceError, find_directory

ENVIRONMENT_PREFIX = "TILLER_"
# `tiller concept` reads it, which is a client. Whoever sets it for a whole shell can start servers there.
_CLIENTS_VARIABLE = "TILLER_TOKEN"
# Kubernetes sets these in every container where a service is called "tiller".
_SERVICE_LINK = re.compile(r"TILLER_(SERVICE|PORT)(_(?!_)|$)")


# pydantic's own, as we say it.
_WORDS = {
    "Value error, ": "",
    "Input should be": "must be",
    "String should": "must",
    "Tuple should": "must",
    "a valid tuple": "a list",
}

_MERGE = "tag:yaml.org,2002:merge"  # YAML's `<<`

_DEFAULT_CONFIG = Path("configs/quickstart.yaml")


class SettingsError(Exception):
    """The settings cannot be used; the message is one line for the operator."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


def _check_origin(origin: str) -> str:
    if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
        raise ValueError("must be '*' or an origin such as 'https://example.org'")
    return origin


def _check_url(url: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", url):
        raise ValueError("must be a URL such as 'http://localhost:4318/v1/traces'")
    return url


def _check_distinct(blocks: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(blocks)) < len(blocks):
        raise ValueError("must name each block once")
    return blocks


Origin = Annotated[str, AfterValidator(_check_origin)]


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
    max_connections: PositiveInt = 2048
    """At the same time. Each request that runs or waits has one."""
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
    steering_blocks: (
        Annotated[
            tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_check_distinct)
        ]
        | None
    ) = None
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
    """Of one access token, at the same time: chats, and concepts that it creates. None: any number."""
    tokens_per_minute: PositiveInt | None = None
    """Of one access token, in prompts and answers."""
    max_examples: PositiveInt = 1000
    """Pairs of one steering concept."""
    max_example_characters: PositiveInt = 4000
    max_concept_tokens: PositiveInt = 131_072
    """In all texts of a concept together."""
    max_trainings: PositiveInt = 64
    """Concepts that are being created, of all callers together."""
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


class TracingSettings(Section):
    """Traces of OpenTelemetry; its own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT, ask for them, too."""

    endpoint: Annotated[str, AfterValidator(_check_url)] | None = None
    """Where spans go, by OTLP over HTTP, such as `http://localhost:4318/v1/traces`. None: nowhere."""


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


def _check_tokens(tokens: tuple[AccessToken, ...]) -> tuple[AccessToken, ...]:
    for field in ("name", "sha256"):
        values = [getattr(token, field) for token in tokens]
        if len(set(values)) < len(values):
            raise ValueError(f"must not have the same {field} twice")
    return tokens


class AuthSettings(Section):
    tokens: Annotated[tuple[AccessToken, ...], AfterValidator(_check_tokens)] = ()
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
    tracing: TracingSettings = TracingSettings()
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
    _refuse_other_files(settings)
    _refuse_open_network(settings)
    _refuse_missing_concepts(settings)
    _refuse_missing_model(settings)
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
        first = error.errors()[0]
        raise SettingsError(f"{_origin_of(first, path, overrides)}: {_explain(first)}") from None
    except VariableError as error:
        names = ", ".join(filter(_is_broken_json, os.environ)) or str(error)
        raise SettingsError(f"environment: {names}: no JSON") from None
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


class _Loader(yaml.SafeLoader):
    """A key that is there twice is a mistake. YAML's own rule; the library takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} is there twice", key_node.start_mark
                )
            keys.append(key)
        return super().construct_mapping(node, deep)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - it is a safe one
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        told = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise SettingsError(f"{path}: no YAML: {told}") from None
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


def _origin_of(error: ErrorDetails, path: Path | None, overrides: Mapping[str, Mapping[str, object]]) -> str:
    """Where the operator wrote it: what overrides the others is looked for first."""
    section, *rest = map(str, error["loc"])
    if rest and rest[0] in overrides.get(section, {}):
        return f"--{rest[0]}"
    variable = ENVIRONMENT_PREFIX + section.upper()
    names = list(itertools.accumulate((variable, *map(str.upper, rest)), "{}__{}".format))
    given = [name for name in os.environ if name.upper() in names]
    if given:
        return f"environment: {max(given, key=len)}"
    return "settings" if path is None else str(path)


def _is_broken_json(variable: str) -> bool:
    if not variable.upper().startswith(ENVIRONMENT_PREFIX):
        return False
    try:
        json.loads(os.environ[variable])
    except ValueError:
        return os.environ[variable].lstrip().startswith(("{", "["))
    return False


def _explain(error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key} is no setting"
    if error["type"] == "missing":
        return f"{key} is required"
    if error["type"] == "model_type":
        return f"{key} must be a mapping, got {shorten(error['input'])}"
    rule = error["msg"]
    for told, better in _WORDS.items():
        rule = rule.replace(told, better)
    return f"{key} {rule}, got {shorten(error['input'])}"


def _refuse_open_network(settings: Settings) -> None:
    if settings.has_tokens or _is_loopback(settings.server.host):
        return
    raise SettingsError(
        f"server.host {settings.server.host} can be reached by others, and there are no access tokens: "
        "make one with `tiller token new NAME`, or use 127.0.0.1"
    )


def _refuse_missing_model(settings: Settings) -> None:
    try:
        find_directory(settings.model.source)
    except SourceError as error:
        raise SettingsError(f"model.source: {error}") from None


def _refuse_other_files(settings: Settings) -> None:
    """Directories may be missing, and made later; but nothing else may be in their place."""
    for key in ("cache_directory", "data_directory"):
        given = getattr(settings, key)
        try:
            directory = Path(given).expanduser()
            there = next(path for path in (directory, *directory.parents) if path.exists())
        except (OSError, RuntimeError) as error:
            raise SettingsError(f"{key} {given} cannot be found: {error}") from None
        if not there.is_dir():
            raise SettingsError(f"{key} {given} is no directory: {there} is a file")
        if not os.access(there, os.R_OK | os.X_OK):
            raise SettingsError(f"{key} {given} cannot be read")


def _refuse_missing_concepts(settings: Settings) -> None:
    """The default may be missing: not everybody has our configs/ in the working directory."""
    if "concepts" in settings.steering.model_fields_set and not settings.shipped_concepts.is_dir():
        raise SettingsError(f"steering.concepts {settings.steering.concepts} is no directory")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

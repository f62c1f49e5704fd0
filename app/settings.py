"""The gateway's configuration: what there is to configure, its defaults and its rules. Frozen."""

import os
import re
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_settings import (
    BaseSettings,
    SettingsConfigDict,
)

from inference.interface.config import Device, DType, EngineConfig, LogFormat, LogLevel, Quantization

ENVIRONMENT_PREFIX = "TILLER_"


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


def _accept_former_name(quantization: object) -> object:
    return "integer" if quantization == "int8" else quantization


_DEFAULTS = EngineConfig()

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
    keepalive_seconds: PositiveInt = 75
    """How long a connection may be idle between requests. Longer than clients keep theirs: one that is closed
    just when the next request is on its way loses it."""
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
    device: Device = _DEFAULTS.device
    dtype: DType = _DEFAULTS.dtype
    quantization: Annotated[Quantization, BeforeValidator(_accept_former_name)] = _DEFAULTS.quantization
    threads: PositiveInt | None = _DEFAULTS.threads
    context_length: PositiveInt | None = _DEFAULTS.context_length
    block_size: PositiveInt = _DEFAULTS.block_size
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = _DEFAULTS.kv_cache_gib
    max_batch_tokens: PositiveInt = _DEFAULTS.max_batch_tokens
    max_running: PositiveInt = _DEFAULTS.max_running
    max_queued: Annotated[int, Field(ge=0)] = _DEFAULTS.max_queued
    nice_ageing_seconds: Annotated[float, Field(ge=0)] = _DEFAULTS.nice_ageing_seconds
    max_step_seconds: Annotated[float, Field(ge=3)] = _DEFAULTS.max_step_seconds
    steering_blocks: (
        Annotated[
            tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_check_distinct)
        ]
        | None
    ) = _DEFAULTS.steering_blocks
    seed: int | None = _DEFAULTS.seed


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


class AccessScope(StrEnum):
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
    scopes: Annotated[tuple[AccessScope, ...], Field(min_length=1)] = tuple(AccessScope)
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

"""The gateway's settings: names, types, defaults and rules. Frozen. Does not read files or variables."""

import os
import re
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
)
from pydantic_settings import (
    BaseSettings,
    SettingsConfigDict,
)

from inference.interface.config import Device, DType, EngineConfig, LogFormat, LogLevel, Quantization, Rotary

ENVIRONMENT_PREFIX = "TILLER_"


class Section(BaseModel):
    """A section of the settings. Frozen; refuses unknown keys."""

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
        raise ValueError("must name each decoder block once")
    return blocks


def _check_not_beside_gib(share: float | None, info: ValidationInfo) -> float | None:
    if share is not None and info.data.get("kv_cache_gib") is not None:
        raise ValueError("must not be set beside kv_cache_gib")
    return share


def _accept_former_name(quantization: object) -> object:
    return "integer" if quantization == "int8" else quantization


_DEFAULTS = EngineConfig()

Origin = Annotated[str, AfterValidator(_check_origin)]


class TlsSettings(Section):
    """Two files in PEM format. The key must not be encrypted."""

    certificate: str
    """Path of the server's certificate, followed by the intermediate certificates."""
    key: str
    """Path of the certificate's private key."""


class ServerSettings(Section):
    """The HTTP server and its connections."""

    host: str = "127.0.0.1"
    """Address or host name to listen on. Without access tokens, it must be a loopback address."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """TCP port. 0: any free port."""
    max_body_bytes: PositiveInt = 8 * 2**20
    """Maximum size of a request's body, in bytes."""
    max_header_bytes: PositiveInt = 32 * 2**10
    """Maximum size of a request's target and headers together, in bytes."""
    max_headers: PositiveInt = 100
    """Maximum number of headers of a request."""
    header_seconds: PositiveFloat = 10.0
    """Seconds for a request's headers to arrive, and seconds that a new connection may send nothing."""
    body_seconds: PositiveFloat = 60.0
    """Seconds for a request's body to arrive, after its headers."""
    keepalive_seconds: PositiveInt = 75
    """Seconds that a connection may be idle between requests. Clients and proxies should close idle ones
    earlier: a request is lost if the server closes its connection while the request is on its way."""
    max_connections: PositiveInt = 2048
    """Maximum number of concurrent connections. Each running or waiting request needs one. The default is
    lowered to what the system's limit of open files allows."""
    drain_seconds: Annotated[float, Field(ge=0)] = 5.0
    """Seconds that running requests may go on after the server gets a signal to stop."""
    stall_seconds: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    """Seconds after which the server cuts a connection whose client accepts no data. Needs Linux."""
    stream_open_seconds: PositiveFloat = 10.0
    """A streamed answer begins after this many seconds, even if there is no token yet. So no proxy cuts the
    request. Until then, a failure has its own HTTP status."""
    ping_seconds: Annotated[float, Field(ge=1)] | None = None
    """Seconds between two comment lines in a streamed answer, for proxies that cut silent connections. None:
    no comment lines. Aleph Alpha's Python client fails when it reads one."""
    cors_origins: tuple[Origin, ...] = ()
    """Origins whose pages may call from a browser, such as `https://example.org`. `*`: all origins."""
    tls: TlsSettings | None = None
    """Certificate and key for HTTPS. None: plain HTTP."""


class ModelSettings(Section):
    """The served model."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "smollm2-135m-instruct"
    """The name of the model in requests and answers."""
    source: Annotated[str, StringConstraints(min_length=1)] = "embedded"
    """ "embedded", a directory, a GGUF file, or a Hugging Face hub id."""
    revision: Annotated[str, StringConstraints(min_length=1)] | None = _DEFAULTS.revision
    """Branch, tag or commit of a model from the Hugging Face hub. None: the main branch."""
    chat_template: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Path of a Jinja file that is used instead of the model's own chat template."""
    rotary: Rotary | None = _DEFAULTS.rotary
    """For Pharia models only: the form of their rotary embedding. EngineConfig documents the values."""
    description: str = ""
    """Text for the lists of models."""


class EngineSettings(Section):
    """The number of workers, and the fields of EngineConfig. EngineConfig documents these fields."""

    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of workers. Each has its own model, its own KV cache, and all limits below for itself."""
    device: Device = _DEFAULTS.device
    dtype: DType = _DEFAULTS.dtype
    quantization: Annotated[Quantization, BeforeValidator(_accept_former_name)] = _DEFAULTS.quantization
    threads: PositiveInt | None = _DEFAULTS.threads
    context_length: PositiveInt | None = _DEFAULTS.context_length
    block_size: PositiveInt = _DEFAULTS.block_size
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = _DEFAULTS.kv_cache_gib
    kv_cache_share: Annotated[
        Annotated[float, Field(gt=0, lt=1)] | None, AfterValidator(_check_not_beside_gib)
    ] = _DEFAULTS.kv_cache_share
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


class ApiSettings(Section):
    """How strictly chat requests are checked."""

    strict: bool = True
    """True: the rules of Aleph Alpha's API. False: accepts what agent frameworks send. Neighbours of the same
    role are merged, `developer` is read as `system`, an `assistant` message may come first, and unsupported
    fields may have values that have no effect."""


class LimitSettings(Section):
    """Limits for requests. EngineSettings has the capacity of the engine."""

    max_n: PositiveInt = 16
    """Maximum `n` of a chat request."""
    max_messages: PositiveInt = 4096
    """Maximum number of messages in a chat request."""
    max_logit_bias: PositiveInt = 1024
    """Maximum number of entries in the logit_bias of a chat request."""
    default_max_tokens: PositiveInt | None = None
    """`max_tokens` of a chat request that sets none. If the context leaves less, then that. None: as many as
    the context leaves."""
    max_wait_seconds: PositiveFloat = 300.0
    """Seconds that a chat request may wait in the engine for its first token."""
    max_requests: PositiveInt | None = None
    """Maximum number of concurrent chats and concept creations of one access token. None: no limit."""
    tokens_per_minute: PositiveInt | None = None
    """Maximum number of prompt and answer tokens of one access token per minute. None: no limit."""
    max_examples: PositiveInt = 1000
    """Maximum number of contrastive pairs in a steering concept."""
    max_example_characters: PositiveInt = 4000
    """Maximum length of each text in a pair, in characters."""
    max_concept_tokens: PositiveInt = 131_072
    """Maximum number of tokens in all texts of a concept together."""
    max_vector_bytes: PositiveInt = 64 * 2**20
    """Maximum size of a file with steering vectors that is imported, in bytes."""
    max_read_texts: PositiveInt = 256
    """Maximum number of texts that one request may read a concept's presence in."""
    max_trainings: PositiveInt = 64
    """Maximum number of concepts in creation at the same time, of all callers together."""
    max_concepts: PositiveInt = 1000
    """Maximum number of created concepts, of all callers together. Shipped concepts do not count."""


class SteeringSettings(Section):
    """The shipped steering concepts, and when to train concepts."""

    concepts: str = "configs/concepts"
    """Directory of the shipped concepts, one YAML file each. The default directory may be missing."""
    train_at_start: bool = True
    """True: train all concepts while the engine is idle. False: train each when a request first names it."""
    questions: Annotated[int, Field(ge=0, le=20)] = 20
    """How many neutral questions the model answers in a training. Fewer are faster, and make the strengths
    less exact. 0: no answers, so the strengths depend on the examples only."""


class LogSettings(Section):
    """The log of the gateway and its workers, which goes to stderr."""

    format: LogFormat = "text"
    """ "text": lines for people. "json": one JSON object per line."""
    level: LogLevel = "info"
    """The lowest level that is logged."""
    texts: bool = False
    """True: log the messages and answers of chats. Access tokens are never logged."""


class TracingSettings(Section):
    """OpenTelemetry traces. Its own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT, turn them on as well."""

    endpoint: Annotated[str, AfterValidator(_check_url)] | None = None
    """URL that receives the spans, in OTLP over HTTP, such as `http://localhost:4318/v1/traces`. None: only
    OpenTelemetry's variables decide."""


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
    max_requests: PositiveInt | None = None
    """Overrides LimitSettings.max_requests. None: that limit applies."""
    tokens_per_minute: PositiveInt | None = None
    """Overrides LimitSettings.tokens_per_minute. None: that limit applies."""


class NamedAccessToken(AccessToken):
    """An access token that is in the configuration, or new. A token file may have any names."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(_check_token_name)]


def _check_tokens(tokens: tuple[NamedAccessToken, ...]) -> tuple[NamedAccessToken, ...]:
    for field in ("name", "sha256"):
        values = [getattr(token, field) for token in tokens]
        if len(set(values)) < len(values):
            raise ValueError(f"must not have the same {field} twice")
    return tokens


class AuthSettings(Section):
    """Access tokens in the configuration. `tiller token new` stores others in Settings.token_file."""

    tokens: Annotated[tuple[NamedAccessToken, ...], AfterValidator(_check_tokens)] = ()
    """Empty, and no token file: the server accepts every caller, and must listen on a loopback address."""
    open_metrics: bool = False
    """True: /metrics needs no access token."""


class Settings(BaseSettings):
    """All settings of a server. Frozen."""

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
    api: ApiSettings = ApiSettings()
    limits: LimitSettings = LimitSettings()
    auth: AuthSettings = AuthSettings()
    steering: SteeringSettings = SteeringSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()
    cache_directory: str = "~/.cache/tiller"
    """For files that can be downloaded or computed again, such as converted models."""
    data_directory: str = "~/.local/share/tiller"
    """For files that cannot be restored: created concepts, and the access tokens of `tiller token`."""

    @property
    def shipped_concepts(self) -> Path:
        return Path(self.steering.concepts).expanduser()

    @property
    def created_concepts(self) -> Path:
        return Path(self.data_directory).expanduser() / "concepts"

    @property
    def chat_template_file(self) -> Path | None:
        template = self.model.chat_template
        return None if template is None else Path(os.path.expanduser(template))

    @property
    def token_file(self) -> Path:
        return Path(self.data_directory).expanduser() / "tokens.json"

    @property
    def has_access_tokens(self) -> bool:
        """Whether callers need an access token. They still do if the last one in the file was revoked."""
        return bool(self.auth.tokens) or os.path.exists(self.token_file)

    @property
    def engine_config(self) -> EngineConfig:
        fields = self.engine.model_dump() | {
            "source": self.model.source,
            "revision": self.model.revision,
            "rotary": self.model.rotary,
            "cache_directory": self.cache_directory,
            "training_questions": self.steering.questions,
            "log": {"format": self.log.format, "level": self.log.level},
        }
        return msgspec.convert(fields, EngineConfig)

"""All settings of a server together."""

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec
from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.settings.access import AuthSettings
from app.settings.cluster import ClusterSettings
from app.settings.limits import ApiSettings, LimitSettings
from app.settings.model import (
    EngineSettings,
    ModelSettings,
    ServedModelSettings,
    WorkerAddress,
    with_defaults,
)
from app.settings.section import check_different
from app.settings.server import ServerSettings
from app.settings.steering import SteeringSettings
from app.settings.telemetry import LogSettings, TracingSettings
from inference.interface.config import EngineConfig, LogConfig

ENVIRONMENT_PREFIX = "TILLER_"


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
    models: Annotated[tuple[ServedModelSettings, ...], AfterValidator(check_different("name"))] = ()
    """Several models. Each has the fields of `model`, and an `engine` of its own. What this engine does not
    set is as in the section `engine`. Empty: the server serves `model`."""
    registry: WorkerAddress | None = None
    """Where `tiller registry serve` listens: `tcp://HOST:PORT` or `ipc:///PATH`. The server then starts no
    workers, but uses those that announce themselves there, and shares concepts and limits with other servers.
    None: the server is alone."""
    worker_key: Annotated[str | None, Field(validate_default=True)] = None
    """Path of the key that servers, workers and the registry share if they are at `tcp://`.
    `tiller worker new-key` makes one."""
    cluster: ClusterSettings = ClusterSettings()
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

    @field_validator("models", mode="before")
    @classmethod
    def _fill_engines(cls, models: Any, info: ValidationInfo) -> Any:
        engine = info.data.get("engine", EngineSettings()).model_dump(exclude_unset=True)
        if not isinstance(models, list | tuple):
            return models
        return [with_defaults(model, engine) for model in models]

    @field_validator("models")
    @classmethod
    def _check_short_form(
        cls, models: tuple[ServedModelSettings, ...], info: ValidationInfo
    ) -> tuple[ServedModelSettings, ...]:
        if models and info.data.get("model", ModelSettings()).model_fields_set:
            raise ValueError("must not be set beside the section model")
        return models

    @field_validator("worker_key")
    @classmethod
    def _check_worker_key(cls, key: str | None, info: ValidationInfo) -> str | None:
        models = [info.data.get("model", ModelSettings()), *info.data.get("models", ())]
        addresses = [address for model in models for address in model.workers]
        if key is None and any(address.startswith("tcp:") for address in addresses):
            raise ValueError("must be set, because there are workers at tcp://")
        if key is None and (info.data.get("registry") or "").startswith("tcp:"):
            raise ValueError("must be set, because the registry is at tcp://")
        return key

    @property
    def worker_key_file(self) -> Path | None:
        return None if self.worker_key is None else Path(self.worker_key).expanduser()

    @property
    def registry_directory(self) -> Path:
        """Where a registry keeps its files."""
        return Path(self.data_directory).expanduser() / "registry"

    @property
    def cache(self) -> Path:
        return Path(self.cache_directory).expanduser()

    @property
    def served_models(self) -> tuple[ServedModelSettings, ...]:
        """All models that the server serves, at least one."""
        if self.models:
            return self.models
        fields = {name: getattr(self.model, name) for name in ModelSettings.model_fields}
        return (ServedModelSettings.model_construct(**fields, engine=self.engine),)

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
    def has_access_tokens(self) -> bool:
        """Whether callers need an access token. They still do if the last one in the file was revoked."""
        return bool(self.auth.tokens) or os.path.exists(self.token_file)

    def alone(self, model: ServedModelSettings) -> "Settings":
        """The settings of a server that serves only one of `served_models`."""
        return self.model_copy(update={"models": (), "model": model, "engine": model.engine})

    @property
    def log_config(self) -> LogConfig:
        return LogConfig(self.log.format, self.log.level)

    def engine_config(self, model: ServedModelSettings, bars: bool = False) -> EngineConfig:
        """The configuration of the workers of one of `served_models`. `bars`: they draw progress bars."""
        on_devices = [each for each in self.served_models if each.engine.device != "cpu"]
        processes = [each.engine.replicas * each.engine.tensor_parallel for each in on_devices]
        first = on_devices.index(model) if model in on_devices else 0
        fields = model.engine.model_dump() | {
            "source": model.source,
            "revision": model.revision,
            "rotary": model.rotary,
            "cache_directory": self.cache_directory,
            "training_questions": self.steering.questions,
            "refine_directions": self.steering.refine,
        }
        fields |= {"device_index": sum(processes[:first]), "device_processes": sum(processes)}
        config = msgspec.convert(fields, EngineConfig)
        name = model.name if self.models else ""
        log = msgspec.structs.replace(self.log_config, bars=bars, model=name)
        return msgspec.structs.replace(config, log=log)

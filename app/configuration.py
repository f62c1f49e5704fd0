"""Loads the settings from a YAML file and TILLER_* variables. Reports each error in one line."""

import ipaddress
import itertools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource
from pydantic_settings.exceptions import SettingsError as VariableError

from app.errors import StartError, shorten
from app.settings import ENVIRONMENT_PREFIX, ServedModelSettings, Settings
from inference.interface.directories import EMBEDDED, find_local
from inference.interface.errors import MissingSourceError, SourceError

# For commands that talk to a server, and the examples. A shell that starts a server may have them as well.
_CLIENTS_VARIABLES = frozenset({"TILLER_TOKEN", "TILLER_URL"})
# Kubernetes sets these variables in every container if there is a service named "tiller".
_SERVICE_LINK = re.compile(r"TILLER_(SERVICE|PORT)(_(?!_)|$)")

# Replacements in pydantic's messages.
_REPLACEMENTS = {
    "Value error, ": "",
    "Input should be": "must be",
    "String should": "must",
    "Tuple should": "must",
    "a valid tuple": "a list",
}

_MERGE = "tag:yaml.org,2002:merge"  # YAML's `<<`

_DEFAULT_CONFIG = Path("configs/quickstart.yaml")


class SettingsError(Exception):
    """The settings are not valid. The message has a line for the operator about each fault."""


def default_config(given: Path | None) -> Path | None:
    """The configuration file for a command: the given one, else the default one if it exists."""
    return _DEFAULT_CONFIG if given is None and _DEFAULT_CONFIG.is_file() else given


def load_settings(path: Path | None, **overrides: Mapping[str, object]) -> Settings:
    """Like `read_settings`, with additional checks for a server.

    Raises SettingsError, or StartError if the files of the model are there but cannot be used.
    """
    settings = read_settings(path, **overrides)
    refuse_other_files(settings)
    refuse_open_network(settings)
    refuse_missing_concepts(settings)
    refuse_missing_model(settings)
    return settings


def read_settings(path: Path | None, **overrides: Mapping[str, object]) -> Settings:
    """Reads the settings. `overrides` take precedence over the environment, the file and the defaults.

    Raises SettingsError.
    """
    _refuse_unknown_variables()
    given = {} if path is None else _read_mapping(path)
    try:
        settings = _settings_over(given)(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [f"{_origin_of(fault, path, overrides)}: {explain(fault)}" for fault in error.errors()]
        raise SettingsError("\n".join(lines)) from None
    except VariableError as error:
        names = ", ".join(filter(_is_broken_json, os.environ)) or str(error)
        raise SettingsError(f"environment: {names} is not valid JSON") from None
    return settings


def _settings_over(file: dict[str, Any]) -> type[Settings]:
    """A Settings class that reads `file` as well, with a lower precedence than arguments and environment."""

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
    """Refuses duplicate keys, as YAML requires. PyYAML itself uses the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key}", key_node.start_mark
                )
            keys.append(key)
        return super().construct_mapping(node, deep)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise SettingsError(f"{path}: is not valid YAML: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsError(f"{path}: must be a mapping of sections, got {shorten(content)}")
    return {key: value for key, value in content.items() if value is not None}


def _refuse_unknown_variables() -> None:
    """pydantic-settings ignores variables that it does not know, so it would not notice a misspelt name."""
    for name in os.environ:
        if not name.startswith(ENVIRONMENT_PREFIX) or _SERVICE_LINK.match(name) or name in _CLIENTS_VARIABLES:
            continue
        section = name.removeprefix(ENVIRONMENT_PREFIX).partition("__")[0].lower()
        if section not in Settings.model_fields:
            raise SettingsError(f"environment: {name} is not a setting")


def _origin_of(error: ErrorDetails, path: Path | None, overrides: Mapping[str, Mapping[str, object]]) -> str:
    """The source of the value at fault: an option, a variable or the file, in this order of precedence."""
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


def explain(error: ErrorDetails) -> str:
    """One line that names the key, the rule and what was given."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key} is not a setting"
    if error["type"] == "missing":
        return f"{key} is required"
    if error["type"] == "model_type":
        return f"{key} must be a mapping, got {shorten(error['input'])}"
    rule = error["msg"]
    for words, replacement in _REPLACEMENTS.items():
        rule = rule.replace(words, replacement)
    return f"{key} {rule}, got {shorten(error['input'])}"


def refuse_open_network(settings: Settings) -> None:
    if settings.has_access_tokens or _is_loopback(settings.server.host):
        return
    raise SettingsError(
        f"server.host {settings.server.host} is not a loopback address, but there are no access tokens: "
        "create one with `tiller token new NAME`, or use 127.0.0.1"
    )


def refuse_missing_model(settings: Settings) -> None:
    for number, model in enumerate(settings.served_models):
        section = f"models.{number}" if settings.models else "model"
        _refuse_missing_template(model, section)
        if settings.registry is None and not model.workers:
            refuse_missing_source(model, section)


def _refuse_missing_template(model: ServedModelSettings, section: str) -> None:
    template = model.chat_template_file
    if template is not None and not template.is_file():
        raise SettingsError(f"{section}.chat_template: the file {template} does not exist")


def refuse_missing_source(model: ServedModelSettings, section: str) -> None:
    """Raises SettingsError, or StartError if the model's files are there but cannot be used."""
    source = model.source
    try:
        is_local = source == EMBEDDED or find_local(source) is not None
    except MissingSourceError as error:
        raise SettingsError(f"{section}.source: {error}") from None
    except SourceError as error:
        raise StartError(f"{section}.source: {error}") from None
    if is_local and model.revision is not None:
        raise SettingsError(
            f"{section}.revision is only for models from the hub, and {section}.source is {source}"
        )


def refuse_other_files(settings: Settings) -> None:
    """The directories may be missing, because they are created later. But their paths must not name files."""
    for key in ("cache_directory", "data_directory"):
        given = getattr(settings, key)
        try:
            directory = Path(given).expanduser()
            existing = next(path for path in (directory, *directory.parents) if path.exists())
        except (OSError, RuntimeError) as error:
            raise SettingsError(f"{key} {given} cannot be found: {error}") from None
        if not existing.is_dir():
            raise SettingsError(f"{key} {given} is not a directory: {existing} is a file")
        if not os.access(existing, os.R_OK | os.X_OK):
            raise SettingsError(f"{key} {given} cannot be read")


def refuse_missing_concepts(settings: Settings) -> None:
    """Only a configured directory must exist. The default is relative, so it may be missing."""
    if "concepts" in settings.steering.model_fields_set and not settings.shipped_concepts.is_dir():
        raise SettingsError(f"steering.concepts {settings.steering.concepts} is not a directory")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

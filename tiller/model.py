"""Loads a model into this process: its engine, its tokenizer and its chat template."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from app.configuration import explain
from app.errors import ApiError, ErrorCode, StartError
from app.settings import EngineSettings, LimitSettings, ModelSettings, Settings, SteeringSettings
from app.text.end_tokens import find_end_tokens
from app.text.prompts import PromptRenderer, load_text
from app.text.tokenizer import Tokenizer
from app.text.vocabulary import check_vocabulary
from inference.backends.backend import KernelError
from inference.building import build_engine
from inference.driver import Driver
from inference.interface.config import ConfigError
from inference.interface.directories import EMBEDDED
from inference.interface.errors import SourceError
from inference.interface.protocol import ModelInfo
from inference.models.errors import UnsupportedModelError
from tiller.errors import InvalidRequestError, LoadError

_MAX_TOKENS = 256
"""The longest answer if the caller sets no limit."""


@dataclass(frozen=True)
class LoadedModel:
    settings: Settings
    driver: Driver
    info: ModelInfo
    tokenizer: Tokenizer
    prompts: PromptRenderer | None
    """None if the model has no chat template."""
    end_token_ids: tuple[int, ...]
    """The tokens that end an answer."""

    def close(self) -> None:
        """Frees what the device keeps for the model, once nothing refers to it any more."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def renderer(self) -> PromptRenderer:
        """Raises MISSING_CAPABILITY if the model has no chat template."""
        if self.prompts is None:
            message = "the model cannot chat: it has no chat template"
            raise ApiError(ErrorCode.MISSING_CAPABILITY, message)
        return self.prompts


def make_settings(
    source: str,
    chat_template: Any,
    revision: str | None,
    cache_directory: Any,
    engine: Mapping[str, Any],
    steering: Mapping[str, Any],
) -> Settings:
    """The settings of a server for this model, checked by the same rules. Reads no environment and no file.

    `engine`, `steering`: fields of EngineSettings and of SteeringSettings; those that are None have their
    defaults.
    """
    template = None if chat_template is None else str(chat_template)
    try:
        return Settings.model_construct(
            model=ModelSettings(name=_name(source), source=source, chat_template=template, revision=revision),
            engine=EngineSettings(**_given(engine)),
            steering=SteeringSettings(**_given(steering)),
            limits=LimitSettings(default_max_tokens=_MAX_TOKENS),
            cache_directory=str(cache_directory),
        )
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][0])
        argument = _ARGUMENTS.get(name, name)
        raise InvalidRequestError(explain({**fault, "loc": (argument,)}), argument) from None


_ARGUMENTS = {"questions": "training_questions"}
"""The settings that have another name as an argument of LLM."""


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _name(source: str) -> str:
    """A name for the model, for the files of concepts."""
    if source == EMBEDDED:
        return ModelSettings().name
    return Path(source).name[:200] or source


def load(settings: Settings) -> LoadedModel:
    """Raises LoadError."""
    [model] = settings.served_models
    try:
        engine, info = build_engine(settings.engine_config(model))
        tokenizer, prompts = load_text(Path(info.directory), model.chat_template_file)
        check_vocabulary(tokenizer, prompts, info.vocab_size)
    except (
        ConfigError,
        SourceError,
        UnsupportedModelError,
        KernelError,
        StartError,
        OSError,
        ValueError,
    ) as error:
        raise LoadError(str(error) or type(error).__name__) from error
    end_tokens = find_end_tokens(info.end_token_ids, tokenizer, prompts, info.vocab_size)
    return LoadedModel(
        settings, Driver(engine), info, tokenizer, prompts, tuple(token.id for token in end_tokens)
    )

"""The answers of the routes that list models."""

from typing import Literal

import msgspec


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A model in OpenAI's format."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The list of models in OpenAI's format."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class AvailableModel(msgspec.Struct, frozen=True):
    """A model in the format of Aleph Alpha's `GET /models_available`."""

    name: str
    description: str
    max_context_size: int
    hostings: list[str]
    image_support: bool
    qa_support: bool
    summarization_support: bool
    embedding_types: list[str]
    maximum_completion_tokens: int
    aligned: bool


class ModelSetting(msgspec.Struct, frozen=True):
    """A model in the format of Aleph Alpha's `GET /model-settings`."""

    name: str
    status: Literal["available", "unavailable"]
    description: str
    multimodal: bool
    max_context_size: int
    semantic_embedding: bool
    completion_type: Literal["none"]
    embedding_type: None
    aligned: bool
    chat: bool
    prompt_template: None
    maximum_completion_tokens: int
    worker_type: Literal["tiller"]

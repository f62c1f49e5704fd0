"""The answers of the routes that list models."""

from typing import Literal

import msgspec


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A model in OpenAI's format."""

    id: str
    """The model's name in requests."""
    object: Literal["model"] = "model"
    """Always `model`."""
    created: int
    """When the server started, in seconds since 1970."""
    owned_by: str
    """Always `tiller`."""


class EndToken(msgspec.Struct, frozen=True):
    """A token that ends an answer."""

    id: int
    """Its id in the vocabulary."""
    token: str
    """Its name, such as `<|im_end|>`."""
    sources: list[str]
    """What names it as an end token: files of the model, "tokenizer" or "chat template"."""


class ModelDetails(ModelCard, frozen=True, kw_only=True):
    """A model in OpenAI's format, with more about it."""

    end_tokens: list[EndToken]
    """The tokens that end an answer."""


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The list of models in OpenAI's format."""

    object: Literal["list"] = "list"
    """Always `list`."""
    data: list[ModelCard]
    """The served models."""


class AvailableModel(msgspec.Struct, frozen=True):
    """A model in the format of Aleph Alpha's `GET /models_available`."""

    name: str
    """The model's name in requests."""
    description: str
    """The operator's text about the model."""
    max_context_size: int
    """Maximum number of tokens of prompt and completion together."""
    hostings: list[str]
    """Always empty."""
    image_support: bool
    """Always false."""
    qa_support: bool
    """Always false."""
    summarization_support: bool
    """Always false."""
    embedding_types: list[str]
    """Always empty."""
    maximum_completion_tokens: int
    """Maximum number of tokens of a completion."""
    aligned: bool
    """Whether the model can chat."""


class ModelSetting(msgspec.Struct, frozen=True):
    """A model in the format of Aleph Alpha's `GET /model-settings`."""

    name: str
    """The model's name in requests."""
    status: Literal["available", "unavailable"]
    """Whether the model serves requests now."""
    description: str
    """The operator's text about the model."""
    multimodal: bool
    """Always false."""
    max_context_size: int
    """Maximum number of tokens of prompt and completion together."""
    semantic_embedding: bool
    """Always false."""
    completion_type: Literal["none"]
    """Always `none`: there are only chats."""
    embedding_type: None
    """Always null."""
    aligned: bool
    """Whether the model can chat."""
    chat: bool
    """Whether the model can chat."""
    prompt_template: None
    """Always null."""
    maximum_completion_tokens: int
    """Maximum number of tokens of a completion."""
    worker_type: Literal["tiller"]
    """Always `tiller`."""

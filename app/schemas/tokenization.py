"""Requests and answers of the routes for the tokenizer."""

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import FailFast, Field

from app.schemas.base import RequestModel


class TokenizeRequest(RequestModel):
    """The body of POST /tokenize."""

    model: str
    """The name of a served model, as `GET /models` lists it."""
    prompt: str
    """The text to tokenize. The names of control tokens are read as text."""
    tokens: bool = False
    """Returns the tokens as strings."""
    token_ids: bool = False
    """Returns the token ids."""


class Tokenized(msgspec.Struct, frozen=True, omit_defaults=True):
    """The tokens of a text. A field is present only if the request asks for it."""

    tokens: list[str] | UnsetType = UNSET
    """The tokens as strings."""
    token_ids: list[int] | UnsetType = UNSET
    """The token ids."""


class DetokenizeRequest(RequestModel):
    """The body of POST /detokenize."""

    model: str
    """The name of a served model, as `GET /models` lists it."""
    token_ids: Annotated[list[Annotated[int, Field(ge=0)]], FailFast()]
    """The token ids to decode."""


class Detokenized(msgspec.Struct, frozen=True):
    """The text of token ids."""

    result: str
    """The text."""

"""Requests and answers of the tokenizer's routes."""

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import FailFast, Field

from app.schemas.base import RequestModel


class TokenizeRequest(RequestModel):
    model: str
    prompt: str
    tokens: bool = False
    token_ids: bool = False


class Tokenized(msgspec.Struct, frozen=True, omit_defaults=True):
    """Each only if it was asked for."""

    tokens: list[str] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class DetokenizeRequest(RequestModel):
    model: str
    token_ids: Annotated[list[Annotated[int, Field(ge=0)]], FailFast()]


class Detokenized(msgspec.Struct, frozen=True):
    result: str

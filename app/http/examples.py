"""Request bodies that this server answers. `/docs` offers them under "Try it out". Knows no routes."""

from typing import Any

from app.schemas.base import RequestModel
from app.schemas.chat import ChatRequest
from app.schemas.concepts import ConceptRequest
from app.schemas.readings import ReadRequest
from app.schemas.tokenization import DetokenizeRequest, TokenizeRequest

_PAIRS = [
    {"positive": "Thanks for the real talk, fam.", "negative": "I appreciate your valuable feedback."},
    {"positive": "Yo, these numbers look stacked!", "negative": "The projections indicate growth."},
]


def example_chat(model: str) -> dict[str, Any]:
    """A short and calm chat: a small model rambles at a high temperature."""
    messages = [{"role": "user", "content": "Hello!"}]
    return {"model": model, "messages": messages, "max_tokens": 64, "temperature": 0.2}


def example_bodies(model: str, vocab_size: int) -> dict[type[RequestModel], dict[str, Any]]:
    """One body for each route that has one. `vocab_size`: the tokenizer's."""
    return {
        ChatRequest: example_chat(model),
        ConceptRequest: {"name": "slang", "description": "Casual rather than formal", "examples": _PAIRS},
        ReadRequest: {"texts": ["Thanks for the real talk, fam.", "I appreciate your valuable feedback."]},
        TokenizeRequest: {"model": model, "prompt": "Hello!", "tokens": True, "token_ids": True},
        DetokenizeRequest: {"model": model, "token_ids": [vocab_size // 2]},
    }

"""The examples in the documentation: they set `max_tokens` and `temperature`, or a small model rambles."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from app.schemas.chat import ChatRequest
from app.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/api.md", "docs/steering.md")


def chats(page: str) -> list[dict[str, Any]]:
    """The bodies of all chat requests that the page sends with curl."""
    found = re.findall(r"-d '(\{.*?\})'", (ROOT / page).read_text(), re.DOTALL)
    return [body for body in map(json.loads, found) if "messages" in body]


@pytest.mark.parametrize("page", PAGES)
def test_each_chat_is_valid_and_sets_max_tokens_and_temperature(page: str) -> None:
    for body in chats(page):
        ChatRequest.model_validate(body, context=Settings())
        assert body["max_tokens"] <= 64, body
        assert body["temperature"] < 0.5, body


def test_the_readme_and_the_api_have_chats() -> None:
    assert [bool(chats(page)) for page in PAGES[:2]] == [True, True]


@pytest.mark.parametrize(
    "file", [*PAGES[:2], *(f"examples/{path.name}" for path in ROOT.glob("examples/*.py"))]
)
def test_each_chat_in_python_sets_max_tokens_and_temperature(file: str) -> None:
    text = (ROOT / file).read_text()
    programs = re.findall(r"```python\n(.*?)```", text, re.DOTALL) if file.endswith(".md") else [text]
    assert programs
    for program in programs:
        assert re.search(r"max(imum)?_tokens", program), program
        assert "temperature" in program, program

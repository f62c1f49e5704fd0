"""docs/migration.md: each statement about a field, a route, a method or a key is checked."""

import inspect
import re
from collections.abc import Iterator
from functools import reduce
from typing import Any

import pytest
from aleph_alpha_client import AsyncClient, Client
from markdown_it import MarkdownIt
from pydantic import BaseModel, ValidationError

from app.routes.table import route_of
from app.schemas.chat import ChatRequest
from app.settings import Settings
from tests.documentation.blocks import ROOT

TEXT = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
VALUES: dict[str, Any] = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "maximum_tokens", "top_k", "n"), 2),
    **dict.fromkeys(("temperature", "top_p", "frequency_penalty", "presence_penalty"), 0.5),
    "model": "other",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    "stop": ["a", "b"],
    "logit_bias": {"5": -100},
    "logprobs": True,
    "top_logprobs": 3,
    "stream": True,
    "stream_options": {"include_usage": True},
    "steering_concepts": ["_worker/a"],
    "response_format": {"type": "json_object"},
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
}
"""A value of each field that other servers accept. Fields that are ignored have any value."""
IGNORED_VALUES = (1, -1, "text", True, [1], {"a": [0.5]})


def tables(header: str) -> Iterator[tuple[str, list[str], str]]:
    """The rows of the tables with this header: the heading above, the codes in the first cell, the second."""
    heading, cells, names = "", [], ""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(TEXT)
    for before, token in zip([None, *tokens], tokens, strict=False):
        if before and token.type == "inline" and before.type == "heading_open":
            level = before.markup
            heading = token.content if level == "##" else f"{heading.split(' / ')[0]} / {token.content}"
        if token.type == "table_open":
            names = ""
        if token.type == "tr_open":
            cells = []
        if before and token.type == "inline" and before.type in ("th_open", "td_open"):
            cells.append(token.content)
        if token.type == "tr_close":
            if names == header:
                yield heading, re.findall(r"`([^`]+)`", cells[0]), cells[1]
            names = names or cells[0]


def rows(header: str) -> list[Any]:
    found = [(heading, code, cell) for heading, codes, cell in tables(header) for code in codes]
    return [pytest.param(code, cell, id=f"{heading}: {code}") for heading, code, cell in found]


def accepted(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({**CHAT, **fields}, context=Settings())


@pytest.mark.parametrize(("field", "statement"), rows("field"))
def test_what_the_page_says_of_a_field(field: str, statement: str) -> None:
    match re.split(r"\W", statement)[0]:
        case "same":
            assert accepted(**{field: VALUES[field]}) != accepted()
        case "refused":
            with pytest.raises(ValidationError):
                accepted(**{field: VALUES[field]})
        case "ignored":
            changed = [accepted(**{field: value}) for value in IGNORED_VALUES]
            known = dict.fromkeys(("seed", "service_tier", "user"))
            assert all(request.model_copy(update=known) == accepted() for request in changed)
        case other:
            pytest.fail(f"{field} is neither same nor refused nor ignored, but {other}")


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 0},
        {"top_k": -1},
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": 5, "max_completion_tokens": 6},
        {"temperature": 2.1},
        {"n": 17},
        {"stop": [str(number) for number in range(17)]},
        {"logit_bias": [[5, -1.0]]},
        {"logit_bias": {"Hello": -1.0}},
        {"logit_bias": {"5": False}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ],
    ids=str,
)
def test_values_that_the_page_calls_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        accepted(**fields)


def test_the_page_has_the_defaults() -> None:
    assert (accepted().temperature, accepted().top_p, accepted().top_k) == (1, 1, None)


@pytest.mark.parametrize(("route", "statement"), rows("route"))
def test_what_the_page_says_of_a_route(route: str, statement: str) -> None:
    method, path = route.split()
    verdict = re.split(r"\W", statement)[0]
    assert verdict in ("same", "differs", "404")
    assert (route_of(method, path) == "other") == (verdict == "404")


METHODS = rows("method")


def test_the_page_has_all_methods_of_aleph_alphas_client() -> None:
    public = {
        name for kind in (Client, AsyncClient) for name, _ in inspect.getmembers(kind, inspect.isfunction)
    }
    documented = [row.values[0] for row in METHODS]
    assert sorted(documented) == sorted(name for name in public - {"close"} if not name.startswith("_"))


@pytest.mark.parametrize(("method", "statement"), METHODS)
def test_what_the_page_says_of_a_method(method: str, statement: str) -> None:
    source = inspect.getsource(getattr(Client, method, None) or getattr(AsyncClient, method))
    paths = re.findall(r'"(complete|\w*embed\w*|evaluate|explain|rerank|translate)"', source)
    assert bool(paths) == statement.startswith("404")
    assert all(route_of("POST", f"/{path}") == "other" for path in paths)


@pytest.mark.parametrize("keys", [row.values[1] for row in rows("option")])
def test_each_key_exists(keys: str) -> None:
    before_the_reason = keys.partition("none: ")
    for key in re.findall(r"`([a-z]+(?:\.[a-z_]+)+)`", "".join(before_the_reason)):
        reduce(child, key.split("."), Settings())


def child(section: BaseModel, name: str) -> Any:
    assert name in type(section).model_fields, f"{section!r} has no {name}"
    return getattr(section, name)

"""`messages`: the order of roles, the allowed content, and the resulting prompt."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.app.contract.support import (
    CHAT,
    assert_error,
    assistant,
    body,
    chat,
    completion,
    post,
    sent,
    system,
    user,
)
from tests.app.fakes import FakeEngine

CONVERSATIONS = [
    [user("a")],
    [system("s"), user("a")],
    [user("a"), assistant("b"), user("c")],
    [system("s"), user("a"), assistant("b"), user("c")],
    [user("a"), assistant("b"), user("c"), assistant("d"), user("e")],
]
DISORDERS = [
    [],
    [system("s")],
    [assistant("a")],
    [assistant("a"), user("b")],
    [system("s"), assistant("a"), user("b")],
    [user("a"), assistant("b")],
    [system("s"), user("a"), assistant("b")],
    [user("a"), user("b")],
    [user("a"), assistant("b"), assistant("c"), user("d")],
    [system("s"), system("t"), user("a")],
    [user("a"), system("s")],
    [user("a"), system("s"), user("b")],
    [user("a"), assistant("b"), system("s"), user("c")],
    [user("a"), assistant("b"), user("c"), user("d")],
]
STRANGE_MESSAGES = [
    {"role": "user"},
    {"role": "user", "content": None},
    {"role": "user", "content": 5},
    {"role": "user", "content": True},
    {"role": "user", "content": {"type": "text", "text": "a"}},
    {"content": "a"},
    {"role": None, "content": "a"},
    {"role": "", "content": "a"},
    {"role": "User", "content": "a"},
    {"role": "tool", "content": "a"},
    {"role": "developer", "content": "a"},
    {"role": "function", "content": "a"},
    {"role": ["user"], "content": "a"},
    {"role": 1, "content": "a"},
    "user: a",
    None,
    1,
    [],
    {},
]
STRANGE_PARTS = [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
    {"type": "refusal", "refusal": "no"},
    {"type": "Text", "text": "a"},
    {"type": "text"},
    {"type": "text", "text": None},
    {"type": "text", "text": 5},
    {"type": "text", "text": ["a"]},
    {"text": "a"},
    {"type": None, "text": "a"},
    "a",
    None,
    5,
    ["a"],
]


def rendered(tokenizer: Tokenizer, messages: list[dict[str, Any]]) -> list[int]:
    """The fixture's chat template, applied by hand."""
    turns = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages]
    return tokenizer.encode("".join([*turns, "<|im_start|>assistant\n"])).ids


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=lambda turns: "-".join(t["role"] for t in turns))
async def test_a_conversation_in_order_becomes_the_prompt(
    client: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Tokenizer, messages: list[dict[str, Any]]
) -> None:
    request = await sent(client, engine, messages=messages)
    assert request.prompt_token_ids == rendered(tiny_tokenizer, messages)


@pytest.mark.parametrize(
    "messages", DISORDERS, ids=lambda turns: "-".join(t["role"] for t in turns) or "none"
)
async def test_a_conversation_out_of_order_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, messages: list[dict[str, Any]]
) -> None:
    error = assert_error(await chat(client, messages=messages), 400, "INVALID_REQUEST", "messages")
    assert error["param"].startswith("messages")
    assert engine.requests == []


@pytest.mark.parametrize("messages", [None, "hi", {}, 5, True, user("hi")], ids=json.dumps)
async def test_messages_that_are_not_an_array_are_refused(client: httpx.AsyncClient, messages: Any) -> None:
    response = await chat(client, messages=messages)
    assert_error(response, 400, "INVALID_REQUEST", "messages", param="messages")


async def test_messages_are_required(client: httpx.AsyncClient) -> None:
    response = await post(client, CHAT, {"model": "tiny"})
    assert_error(response, 400, "INVALID_REQUEST", "messages", param="messages")


@pytest.mark.parametrize("message", STRANGE_MESSAGES, ids=json.dumps)
async def test_a_malformed_message_is_refused_with_its_index(
    client: httpx.AsyncClient, engine: FakeEngine, message: Any
) -> None:
    response = await chat(client, messages=[user("a"), assistant("b"), message])
    error = assert_error(response, 400, "INVALID_REQUEST", "messages", "2")
    assert error["param"].startswith("messages")
    assert engine.requests == []


@pytest.mark.parametrize("name", [None, "Ada", 5, [], {"a": 1}, True], ids=json.dumps)
async def test_a_messages_name_is_ignored(client: httpx.AsyncClient, engine: FakeEngine, name: Any) -> None:
    plain = await sent(client, engine)
    named = await sent(client, engine, messages=[{**user("hi"), "name": name}])
    assert named.prompt_token_ids == plain.prompt_token_ids


async def test_an_answer_can_be_sent_back_unchanged(
    client: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Tokenizer
) -> None:
    """OpenAI's SDK dumps a message with these keys besides role and content."""
    extra = {"refusal": None, "annotations": [], "audio": None}
    messages = [user("a"), assistant("b"), user("c")]
    request = await sent(client, engine, messages=[messages[0], {**messages[1], **extra}, messages[2]])
    assert request.prompt_token_ids == rendered(tiny_tokenizer, messages)


@pytest.mark.parametrize(
    "parts", [["hello"], ["hel", "lo"], ["h", "", "ello"], ["hello", ""]], ids=json.dumps
)
async def test_text_parts_are_joined_without_anything_between(
    client: httpx.AsyncClient, engine: FakeEngine, parts: list[str]
) -> None:
    plain = await sent(client, engine, messages=[user("hello")])
    content = [{"type": "text", "text": part} for part in parts]
    split = await sent(client, engine, messages=[user(content)])
    assert split.prompt_token_ids == plain.prompt_token_ids


async def test_every_role_may_send_parts(
    client: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Tokenizer
) -> None:
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    plain = [{"role": role, "content": text} for role, text in turns]
    request = await sent(client, engine, messages=messages)
    assert request.prompt_token_ids == rendered(tiny_tokenizer, plain)


@pytest.mark.parametrize("part", STRANGE_PARTS, ids=json.dumps)
async def test_any_other_part_is_refused(client: httpx.AsyncClient, engine: FakeEngine, part: Any) -> None:
    response = await chat(client, messages=[user([{"type": "text", "text": "look"}, part])])
    assert_error(response, 400, "INVALID_REQUEST", "messages", "content")
    assert engine.requests == []


async def test_a_part_of_another_type_is_refused_with_its_type(client: httpx.AsyncClient) -> None:
    response = await chat(client, messages=[user([STRANGE_PARTS[0]])])
    assert_error(response, 400, "INVALID_REQUEST", "image_url")


async def test_an_empty_string_is_valid_content(
    client: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Tokenizer
) -> None:
    request = await sent(client, engine, messages=[user("")])
    assert request.prompt_token_ids == rendered(tiny_tokenizer, [user("")])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
async def test_any_text_reaches_the_prompt_unchanged(
    client: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Tokenizer, text: str
) -> None:
    request = await sent(client, engine, messages=[user(text)])
    assert request.prompt_token_ids == rendered(tiny_tokenizer, [user(text)])


async def test_text_is_not_rendered_as_a_template(
    client: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Tokenizer
) -> None:
    text = "{{ 7 * 7 }} {% raise %} {# gone #} </s> \\n"
    request = await sent(client, engine, messages=[user(text)])
    assert request.prompt_token_ids == rendered(tiny_tokenizer, [user(text)])


async def test_a_lone_surrogate_is_refused(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert_error(await chat(client, messages=[user("a\ud800b")]), 400, "INVALID_REQUEST")
    assert engine.requests == []


async def test_an_escaped_surrogate_pair_is_one_character(
    client: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Tokenizer
) -> None:
    payload = json.dumps(body(messages=[user("🙂")]))
    assert "\\ud83d\\ude42" in payload
    await completion(client, messages=[user("🙂")])
    assert engine.requests[0].prompt_token_ids == rendered(tiny_tokenizer, [user("🙂")])

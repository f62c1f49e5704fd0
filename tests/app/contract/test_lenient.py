"""The lenient mode (`api.strict: false`): what agent frameworks send is accepted, and no text is lost."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.app.contract.support import CHAT, assert_error, assistant, body, chat, post, system, user
from tests.app.fakes import CHAT_TEMPLATE, FakeEngine, model_info, write_model_directory

STARTS_WITH_THE_USER = (
    "{% set turns = messages | rejectattr('role', 'equalto', 'system') | list %}"
    "{% if turns[0]['role'] != 'user' %}{{ raise_exception('start with a user message') }}{% endif %}"
)


def developer(content: Any) -> dict[str, Any]:
    return {"role": "developer", "content": content}


def question(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "stream": False, "messages": list(messages), "temperature": 0, **fields}


def named(name: str, content: str) -> dict[str, str]:
    return {"role": "user", "name": name, "content": content}


GEOGRAPHER = [system("You are a geographer."), system("Answer in one short sentence.")]
POET = system("You write one line of verse.")
CRITIC = system("You criticise the last line in one sentence.")
RECORDED = {
    # pydantic-ai 2.68: an agent with system_prompt and instructions
    "pydantic-ai": question(*GEOGRAPHER, user("What is the capital of France?"), max_completion_tokens=48),
    "pydantic-ai with history": question(
        *GEOGRAPHER,
        *(user("What is the capital of France?"), assistant("Paris."), user("And of Italy?")),
        max_completion_tokens=48,
        stream_options={"include_usage": True},
    ),
    "pydantic-ai with parts": question(
        *(system("One."), system("Two."), system("Three.")),
        user([{"text": "Hello", "type": "text"}, {"text": "there", "type": "text"}]),
        max_completion_tokens=8,
    ),
    # autogen-agentchat 0.7: the second agent of a RoundRobinGroupChat, in its first and its second turn
    "AutoGen": question(
        CRITIC, named("user", "Write about the sea."), named("poet", "The sea is blue."), max_tokens=48
    ),
    "AutoGen, second turn": question(
        *(CRITIC, named("user", "Write about the sea."), named("poet", "The sea is blue.")),
        *(assistant("That is short."), named("poet", "The waves are high.")),
        max_tokens=48,
    ),
    # three agents: two speak between the turns of one
    "AutoGen with three agents": question(
        *(
            POET,
            named("user", "Write."),
            assistant("Blue sea."),
            named("critic", "Short."),
            named("b", "Yes."),
        ),
        max_tokens=48,
    ),
}
"""Bodies as these frameworks have sent them, with another model and shorter answers."""
PROMPTS = {
    "pydantic-ai": [
        ("system", "You are a geographer.\n\nAnswer in one short sentence."),
        ("user", "What is the capital of France?"),
    ],
    "pydantic-ai with history": [
        ("system", "You are a geographer.\n\nAnswer in one short sentence."),
        ("user", "What is the capital of France?"),
        ("assistant", "Paris."),
        ("user", "And of Italy?"),
    ],
    "pydantic-ai with parts": [("system", "One.\n\nTwo.\n\nThree."), ("user", "Hellothere")],
    "AutoGen": [
        ("system", "You criticise the last line in one sentence."),
        ("user", "Write about the sea.\n\nThe sea is blue."),
    ],
    "AutoGen, second turn": [
        ("system", "You criticise the last line in one sentence."),
        ("user", "Write about the sea.\n\nThe sea is blue."),
        ("assistant", "That is short."),
        ("user", "The waves are high."),
    ],
    "AutoGen with three agents": [
        ("system", "You write one line of verse."),
        ("user", "Write."),
        ("assistant", "Blue sea."),
        ("user", "Short.\n\nYes."),
    ],
}
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str]]]] = {
    "developer": ([developer("s"), user("a")], [("system", "s"), ("user", "a")]),
    "developer after system": (
        [system("s"), developer("d"), user("a")],
        [("system", "s\n\nd"), ("user", "a")],
    ),
    "three users": ([user("a"), user("b"), user("c")], [("user", "a\n\nb\n\nc")]),
    "two assistants": (
        [user("a"), assistant("b"), assistant("c"), user("d")],
        [("user", "a"), ("assistant", "b\n\nc"), ("user", "d")],
    ),
    "empty texts": (
        [system(""), system("s"), user(""), user("a"), user("")],
        [("system", "s"), ("user", "a")],
    ),
    "only empty system texts": ([system(""), developer(""), user("a")], [("system", ""), ("user", "a")]),
    "only empty texts": ([user(""), user("")], [("user", "")]),
    "parts": ([user([{"type": "text", "text": "a"}]), user("b")], [("user", "a\n\nb")]),
    "greeting": ([assistant("Hi!"), user("a")], [("assistant", "Hi!"), ("user", "a")]),
    "greeting after system": (
        [system("s"), assistant("Hi!"), assistant("Ask."), user("a")],
        [("system", "s"), ("assistant", "Hi!\n\nAsk."), ("user", "a")],
    ),
    "strict order": (
        [system("s"), user("a"), assistant("b"), user("c")],
        [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")],
    ),
}
FAULTS: list[tuple[list[dict[str, Any]], str, str]] = [
    ([], "messages must end with a user message", "messages"),
    ([system("s")], "messages must end with a user message", "messages"),
    ([assistant("a")], "messages must end with a user message", "messages"),
    ([user("a"), assistant("b")], "messages must end with a user message, got 'assistant'", "messages"),
    (
        [user("a"), user("b"), system("s"), user("c")],
        "must be 'user' or 'assistant' (system messages must come first), got 'system'",
        "messages[2].role",
    ),
    (
        [user("a"), developer("s"), user("c")],
        "must be 'user' or 'assistant' (system messages must come first), got 'developer'",
        "messages[1].role",
    ),
    ([assistant("a"), system("s"), user("c")], "system messages must come first", "messages[1].role"),
    ([system("s"), developer("d")], "must end with a user message, got 'developer'", "messages"),
    ([user("a"), {"role": "tool", "content": "b"}], "must be 'system', 'user' or", "messages[1].role"),
    ([user("a"), {"role": "function", "content": "b"}], "must be 'system', 'user' or", "messages[1].role"),
    ([user("a"), {"role": "assistant", "content": None}, user("c")], "is required", "messages[1].content"),
    (
        [user("a"), {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, user("c")],
        "messages[1].tool_calls is unsupported",
        "messages[1].tool_calls",
    ),
    (
        [user("a"), {"role": "assistant", "function_call": {"name": "f"}}, user("c")],
        "messages[1].function_call is unsupported",
        "messages[1].function_call",
    ),
]
NOTHING = [
    ("tools", []),
    ("tool_choice", "none"),
    ("parallel_tool_calls", True),
    ("parallel_tool_calls", False),
    ("functions", []),
    ("function_call", "none"),
    ("response_format", {"type": "text"}),
]
SOMETHING = [
    *(("tools", [{"type": "function"}]), ("tools", {}), ("tools", "none"), ("tools", False)),
    *(("tool_choice", "auto"), ("tool_choice", "required"), ("tool_choice", {"type": "function"})),
    *(("tool_choice", []), ("parallel_tool_calls", 1), ("parallel_tool_calls", "false")),
    *(("functions", [{"name": "f"}]), ("function_call", "auto"), ("function_call", {"name": "f"})),
    *(("response_format", {"type": "json_object"}), ("response_format", {"type": "text", "more": 1})),
    *(("response_format", "text"), ("response_format", {})),
]


@pytest.fixture
async def lenient(serve: Any) -> httpx.AsyncClient:
    return await serve(api={"strict": False})


def rendered(turns: list[tuple[str, str]]) -> str:
    """The prompt in the fake model's chat template, written out."""
    texts = [f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns]
    return "".join(texts) + "<|im_start|>assistant\n"


async def prompt(
    client: httpx.AsyncClient, engine: FakeEngine, tokenizer: Tokenizer, payload: dict[str, Any]
) -> str:
    answer = await post(client, CHAT, payload)
    assert answer.status_code == 200, answer.text
    return tokenizer.decode(engine.requests[-1].prompt_token_ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", RECORDED)
async def test_what_frameworks_send_is_answered(
    lenient: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Tokenizer, name: str
) -> None:
    assert await prompt(lenient, engine, tiny_tokenizer, RECORDED[name]) == rendered(PROMPTS[name])


@pytest.mark.parametrize("name", RECORDED)
async def test_the_strict_mode_refuses_what_frameworks_send(
    client: httpx.AsyncClient, engine: FakeEngine, name: str
) -> None:
    assert_error(await post(client, CHAT, RECORDED[name]), 400, "INVALID_REQUEST", "role")
    assert engine.requests == []


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_messages_are_merged(
    lenient: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Tokenizer, name: str
) -> None:
    messages, turns = CONVERSATIONS[name]
    assert await prompt(lenient, engine, tiny_tokenizer, body(messages=messages)) == rendered(turns)


@pytest.mark.parametrize(("messages", "rule", "param"), FAULTS)
async def test_what_has_no_meaning_stays_an_error(
    lenient: httpx.AsyncClient, engine: FakeEngine, messages: list[dict[str, Any]], rule: str, param: str
) -> None:
    answer = await chat(lenient, messages=messages)
    assert_error(answer, 400, "INVALID_REQUEST", rule, param, param=param)
    assert engine.requests == []


@pytest.mark.parametrize(("field", "value"), NOTHING)
async def test_unsupported_fields_may_have_values_without_effect(
    lenient: httpx.AsyncClient, client: httpx.AsyncClient, field: str, value: Any
) -> None:
    assert (await chat(lenient, **{field: value})).status_code == 200
    answer = await chat(client, **{field: value})
    assert_error(answer, 400, "INVALID_REQUEST", field, "unsupported", param=field)


@pytest.mark.parametrize(("field", "value"), SOMETHING, ids=json.dumps)
async def test_unsupported_fields_may_not_have_other_values(
    lenient: httpx.AsyncClient, engine: FakeEngine, field: str, value: Any
) -> None:
    answer = await chat(lenient, **{field: value})
    assert_error(answer, 400, "INVALID_REQUEST", field, "unsupported", param=field)
    assert engine.requests == []


async def test_a_greeting_that_the_template_refuses_is_left_out(
    serve: Any, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    tokenizer = write_model_directory(tmp_path, STARTS_WITH_THE_USER + CHAT_TEMPLATE)
    engine = FakeEngine(model_info(tmp_path, tokenizer.get_vocab_size()))
    client = await serve(engine, api={"strict": False})
    messages = [system("s"), assistant("Hi!"), user("a"), assistant("b"), user("c")]
    turns = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    assert await prompt(client, engine, tiny_tokenizer, body(messages=messages)) == rendered(turns)


async def test_a_template_that_refuses_the_rest_as_well_is_an_error(serve: Any, tmp_path: Path) -> None:
    refusing = "{% if messages[-1]['content'] == 'no' %}{{ raise_exception('never no') }}{% endif %}"
    tokenizer = write_model_directory(tmp_path, refusing + CHAT_TEMPLATE)
    engine = FakeEngine(model_info(tmp_path, tokenizer.get_vocab_size()))
    client = await serve(engine, api={"strict": False})
    for messages in ([assistant("Hi!"), user("no")], [user("no")]):
        assert_error(
            await chat(client, messages=messages), 400, "INVALID_REQUEST", "never no", param="messages"
        )
    assert engine.requests == []


async def test_the_limit_of_messages_counts_those_that_are_sent(serve: Any) -> None:
    client = await serve(api={"strict": False}, limits={"max_messages": 3})
    assert (await chat(client, messages=[user("a")] * 3)).status_code == 200
    assert_error(await chat(client, messages=[user("a")] * 4), 400, "INVALID_REQUEST", "at most 3 items")


MESSAGES = st.lists(
    st.tuples(st.sampled_from(["system", "developer", "user", "assistant"]), st.text("abc \n", max_size=3)),
    max_size=7,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_messages=MESSAGES)
async def test_no_text_is_lost_and_the_roles_take_turns(
    lenient: httpx.AsyncClient,
    engine: FakeEngine,
    tiny_tokenizer: Tokenizer,
    given_messages: list[tuple[str, str]],
) -> None:
    messages = [
        {"role": role, "content": f"{number}{text}"} for number, (role, text) in enumerate(given_messages)
    ]
    roles = ["system" if message["role"] == "developer" else message["role"] for message in messages]
    answer = await chat(lenient, messages=messages)
    starts = [number for number, role in enumerate(roles) if number == 0 or role != roles[number - 1]]
    valid = bool(roles) and roles[-1] == "user" and not any(roles[start] == "system" for start in starts[1:])
    assert (answer.status_code == 200) is valid
    if valid:
        text = tiny_tokenizer.decode(engine.requests[-1].prompt_token_ids, skip_special_tokens=False)
        found = [
            part.partition("\n")
            for part in text.removesuffix("<|im_start|>assistant\n").split("<|im_start|>")
        ]
        turns = [(role, content.removesuffix("<|im_end|>\n")) for role, _, content in found[1:]]
        assert [role for role, _ in turns] == [roles[start] for start in starts]
        assert "\n\n".join(content for _, content in turns) == "\n\n".join(m["content"] for m in messages)

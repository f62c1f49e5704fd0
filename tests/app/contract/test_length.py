"""The length of answers: `max_tokens` and its aliases, the context, and `n`."""

import itertools

import httpx
import pytest

from inference.interface.requests import FinishReason
from tests.app.contract.support import assert_error, chat, sent, steps, user
from tests.app.fakes import CONTEXT_LENGTH, FakeEngine

ALIASES = ("max_tokens", "max_completion_tokens", "maximum_tokens")


async def prompt_length(client: httpx.AsyncClient, engine: FakeEngine, content: str = "hi") -> int:
    request = await sent(client, engine, messages=[user(content)])
    return len(request.prompt_token_ids)


async def fill(client: httpx.AsyncClient, engine: FakeEngine, tokens: int) -> str:
    """A message content for a prompt of this many tokens. Each "|" is one token."""
    return "|" * (tokens - await prompt_length(client, engine, ""))


def too_long(prompt: int, max_tokens: int | None = None) -> str:
    """The message, word for word: LangChain reads its beginning, LiteLLM and pydantic-ai its end."""
    answer = "" if max_tokens is None else f" and max_tokens is {max_tokens}"
    limit = f"and this model's maximum context length is {CONTEXT_LENGTH} tokens"
    return f"the prompt is too long: it has {prompt} tokens{answer}, {limit}"


@pytest.mark.parametrize("field", ALIASES)
@pytest.mark.parametrize("value", [1, 2, 64])
async def test_max_tokens_reaches_the_engine_under_each_of_its_names(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, value: int
) -> None:
    assert (await sent(client, engine, **{field: value})).max_tokens == value


@pytest.mark.parametrize("fields", list(itertools.combinations(ALIASES, 2)), ids="-".join)
async def test_names_with_the_same_value_are_accepted(
    client: httpx.AsyncClient, engine: FakeEngine, fields: tuple[str, str]
) -> None:
    assert (await sent(client, engine, **dict.fromkeys(fields, 7))).max_tokens == 7


@pytest.mark.parametrize("fields", list(itertools.permutations(ALIASES, 2)), ids="-".join)
async def test_names_with_different_values_are_refused(
    client: httpx.AsyncClient, engine: FakeEngine, fields: tuple[str, str]
) -> None:
    response = await chat(client, **{fields[0]: 7, fields[1]: 8})
    assert_error(response, 400, "INVALID_REQUEST", *fields)
    assert engine.requests == []


@pytest.mark.parametrize("odd", ALIASES)
async def test_three_names_with_one_different_value_are_refused(client: httpx.AsyncClient, odd: str) -> None:
    response = await chat(client, **{**dict.fromkeys(ALIASES, 7), odd: 8})
    assert_error(response, 400, "INVALID_REQUEST", odd)


@pytest.mark.parametrize("absent", ALIASES)
async def test_a_name_with_null_is_ignored(
    client: httpx.AsyncClient, engine: FakeEngine, absent: str
) -> None:
    assert (await sent(client, engine, **{**dict.fromkeys(ALIASES, 7), absent: None})).max_tokens == 7


async def test_max_tokens_defaults_to_the_rest_of_the_context(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    request = await sent(client, engine)
    assert request.max_tokens == CONTEXT_LENGTH - len(request.prompt_token_ids)


@pytest.mark.parametrize("field", ALIASES)
async def test_a_request_may_fill_the_context_exactly(
    client: httpx.AsyncClient, engine: FakeEngine, field: str
) -> None:
    left = CONTEXT_LENGTH - await prompt_length(client, engine)
    assert (await sent(client, engine, **{field: left})).max_tokens == left


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("field", ALIASES)
async def test_one_token_beyond_the_context_is_refused_with_both_numbers(
    client: httpx.AsyncClient, engine: FakeEngine, field: str, streamed: bool
) -> None:
    prompt = await prompt_length(client, engine)
    beyond = CONTEXT_LENGTH - prompt + 1
    response = await chat(client, stream=streamed, **{field: beyond})
    error = assert_error(response, 400, "CONTEXT_LENGTH_EXCEEDED", param="max_tokens")
    assert error["message"] == too_long(prompt, beyond)
    assert len(engine.requests) == 1


async def test_a_huge_max_tokens_exceeds_the_context(client: httpx.AsyncClient) -> None:
    for value in (2**31, 2**63, 2**64, 10**30):
        assert_error(
            await chat(client, max_tokens=value), 400, "CONTEXT_LENGTH_EXCEEDED", str(CONTEXT_LENGTH)
        )


async def test_a_prompt_that_leaves_one_token_is_served(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    content = await fill(client, engine, CONTEXT_LENGTH - 1)
    request = await sent(client, engine, messages=[user(content)])
    assert (len(request.prompt_token_ids), request.max_tokens) == (CONTEXT_LENGTH - 1, 1)


@pytest.mark.parametrize("tokens", [CONTEXT_LENGTH, CONTEXT_LENGTH + 1, 10 * CONTEXT_LENGTH])
@pytest.mark.parametrize("fields", [{}, {"max_tokens": 1}], ids=["unset", "one"])
async def test_a_prompt_that_fills_the_context_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, tokens: int, fields: dict[str, int]
) -> None:
    content = await fill(client, engine, tokens)
    response = await chat(client, messages=[user(content)], **fields)
    param = "max_tokens" if fields else "messages"
    error = assert_error(response, 400, "CONTEXT_LENGTH_EXCEEDED", param=param)
    assert error["message"] == too_long(tokens, fields.get("max_tokens"))
    assert len(engine.requests) == 1


async def test_a_very_long_prompt_gets_a_small_error(client: httpx.AsyncClient) -> None:
    response = await chat(client, messages=[user("hello there, " * 80_000)])
    assert_error(response, 400, "CONTEXT_LENGTH_EXCEEDED", str(CONTEXT_LENGTH))


async def test_n_defaults_to_one(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await sent(client, engine)).n == 1


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_n_up_to_the_limit_reaches_the_engine(serve, engine: FakeEngine, limit: int) -> None:
    client = await serve(limits={"max_n": limit})
    assert (await sent(client, engine, n=limit)).n == limit


@pytest.mark.parametrize("n", [4, 1000, 2**31, 2**64])
async def test_n_above_the_limit_is_refused_before_anything_is_allocated(
    serve, engine: FakeEngine, n: int
) -> None:
    client = await serve(limits={"max_n": 3})
    assert_error(await chat(client, n=n), 400, "INVALID_REQUEST", "n", "3", str(n), param="n")
    assert engine.requests == []


async def test_the_context_limit_does_not_depend_on_n(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    left = CONTEXT_LENGTH - await prompt_length(client, engine)
    assert (await sent(client, engine, n=2, max_tokens=left)).max_tokens == left


async def test_the_operators_default_is_used_if_no_name_of_max_tokens_is_given(
    serve, engine: FakeEngine
) -> None:
    client = await serve(limits={"default_max_tokens": 20})
    assert (await sent(client, engine)).max_tokens == 20
    assert (await sent(client, engine, max_tokens=None)).max_tokens == 20
    for name in ALIASES:
        assert (await sent(client, engine, **{name: 30})).max_tokens == 30


async def test_the_operators_default_is_reduced_to_what_the_context_leaves(serve, engine: FakeEngine) -> None:
    client = await serve(limits={"default_max_tokens": 20})
    content = await fill(client, engine, CONTEXT_LENGTH - 5)
    assert (await sent(client, engine, messages=[user(content)])).max_tokens == 5


async def test_the_operators_default_is_reserved_in_the_tokens_per_minute(serve, engine: FakeEngine) -> None:
    prompt = await prompt_length(await serve(), engine)
    limits = {"default_max_tokens": 20, "tokens_per_minute": 2 * prompt + 30}
    client = await serve(limits=limits)
    engine.script = steps([10] * 20, finish=FinishReason.LENGTH)
    assert (await chat(client)).status_code == 200  # leaves prompt + 10
    assert_error(await chat(client), 429, "RATE_LIMITED")
    assert (await chat(client, max_tokens=1)).status_code == 200

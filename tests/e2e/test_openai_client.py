"""OpenAI's Python client, unchanged, against the real server."""

import math
from collections.abc import AsyncIterator, Iterator

import openai
import pytest

from tests.e2e.conftest import MODEL, TOKEN, Server

MESSAGES = [{"role": "user", "content": "Count from 1 to 9, separated by commas."}]
GREEDY = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 24}


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=TOKEN, base_url=f"{server.url}/v1", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=TOKEN, base_url=f"{server.url}/v1", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(**GREEDY)
    [choice] = completion.choices
    assert "3, 4, 5" in (choice.message.content or "")
    assert choice.logprobs is None
    assert completion.model == MODEL
    assert completion.system_fingerprint
    assert completion.usage is not None
    assert (
        completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    )


def test_max_completion_tokens(client: openai.OpenAI) -> None:
    request = {**GREEDY, "max_completion_tokens": 3}
    del request["max_tokens"]
    completion = client.chat.completions.create(**request)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 3


def test_a_stream_gives_the_same_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=2)
    chunks = list(
        client.chat.completions.create(
            **GREEDY, logprobs=True, top_logprobs=2, stream=True, stream_options={"include_usage": True}
        )
    )
    usage = chunks.pop()
    assert usage.usage == whole.usage
    assert usage.choices == []
    choices = [chunk.choices[0] for chunk in chunks]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert choices[-1].finish_reason == whole.choices[0].finish_reason
    entries = [entry for c in choices if c.logprobs for entry in c.logprobs.content or []]
    assert whole.choices[0].logprobs is not None
    expected = whole.choices[0].logprobs.content or []
    assert [entry.token for entry in entries] == [entry.token for entry in expected]
    assert [entry.logprob for entry in entries] == pytest.approx([e.logprob for e in expected], abs=1e-3)
    assert len({chunk.id for chunk in chunks}) == 1


def test_logprobs_belong_to_the_text(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3).choices[0]
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    text = b"".join(bytes(entry.bytes or []) for entry in entries).decode()
    assert text == choice.message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token, "greedy decoding takes the most likely token"
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1.001


def test_n_choices(client: openai.OpenAI) -> None:
    request = {**GREEDY, "temperature": 1.5, "max_tokens": 20}
    completion = client.chat.completions.create(**request, n=3)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in completion.choices}) == 3
    chunks = list(client.chat.completions.create(**request, n=3, stream=True))
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1, 2}
    finished = [c.index for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert sorted(finished) == [0, 1, 2]


def test_a_stop_list(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY).choices[0].message.content or ""
    stopped = client.chat.completions.create(**GREEDY, stop=["never", "6", "5,"])
    assert stopped.choices[0].message.content == whole[: whole.index("5,")]
    assert stopped.choices[0].finish_reason == "stop"
    streamed = client.chat.completions.create(**GREEDY, stop=["never", "6", "5,"], stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == stopped.choices[0].message.content


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by


async def test_async_requests_share_a_batch(async_client: openai.AsyncOpenAI) -> None:
    import asyncio

    alone = await async_client.chat.completions.create(**GREEDY)
    mixed = await asyncio.gather(
        *(
            async_client.chat.completions.create(**{**GREEDY, "temperature": i % 2, "max_tokens": 8 + i % 17})
            for i in range(12)
        )
    )
    expected = alone.choices[0].message.content or ""
    for completion in mixed[::2]:
        content = completion.choices[0].message.content or ""
        assert expected.startswith(content) or content == expected


async def test_async_streaming(async_client: openai.AsyncOpenAI) -> None:
    whole = await async_client.chat.completions.create(**GREEDY)
    stream = await async_client.chat.completions.create(**GREEDY, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


def test_errors_raise_the_clients_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**GREEDY, top_p=1.5)
    assert bad.value.param == "top_p"
    assert bad.value.code == "INVALID_REQUEST"
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(**GREEDY, tools=[])
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**{**GREEDY, "model": "gpt-4o"})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()

"""The public Python clients over a real socket: Aleph Alpha's (synchronous and asynchronous) and OpenAI's."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import aleph_alpha_client as aleph
import openai
import pytest
import pytest_asyncio
from aleph_alpha_client import chat
from aleph_alpha_client.aleph_alpha_client import BusyError
from aleph_alpha_client.steering import SteeringConceptCreationRequest, SteeringPairedExample
from tokenizers import Tokenizer

from app.concepts.concept import Example, digest_of
from app.errors import ApiError, EngineUnavailable, ErrorCode, InternalError
from inference.interface.requests import SteeringSpec
from tests.app.contract.support import CONCEPTS, steps, user
from tests.app.fakes import FakeEngine

Spell = Callable[[str | bytes], list[int]]
TEXT = "Hé \u2028日\x85 🙂\n"

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def speaking(engine: FakeEngine, spell: Spell) -> FakeEngine:
    """The engine answers TEXT, one byte per token."""
    engine.script = steps(*([token_id] for token_id in spell(TEXT)))
    return engine


@pytest_asyncio.fixture(loop_scope="session")
async def alpha(live_url: str) -> AsyncIterator[aleph.AsyncClient]:
    async with aleph.AsyncClient(
        "token", host=live_url, total_retries=0, hosting="aleph-alpha", tags=["t"]
    ) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def sdk(live_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key="token", base_url=f"{live_url}/v1", max_retries=0) as client:
        yield client


def question(**fields: object) -> aleph.ChatRequest:
    messages = [aleph.Message(role=chat.Role.User, content="hi")]
    return aleph.ChatRequest(model="tiny", messages=messages, **fields)


async def test_alephs_client_accepts_the_servers_version(alpha: aleph.AsyncClient) -> None:
    await alpha.validate_version()


async def test_alephs_client_chats(alpha: aleph.AsyncClient, speaking: FakeEngine) -> None:
    request = question(
        maximum_tokens=70, temperature=0.5, top_k=4, top_p=0.75, steering_concepts=["_worker/a"]
    )
    answer = await alpha.chat(request, model="tiny")
    assert answer.message.content == TEXT
    assert answer.finish_reason == chat.FinishReason.Stop
    (submitted,) = speaking.requests
    assert (submitted.max_tokens, submitted.steering) == (70, SteeringSpec({digest_of(CONCEPTS["a"]): 1.0}))
    assert (submitted.sampling.temperature, submitted.sampling.top_k, submitted.sampling.top_p) == (
        0.5,
        4,
        0.75,
    )


async def test_alephs_client_streams(alpha: aleph.AsyncClient, speaking: FakeEngine) -> None:
    request = question(stream_options=chat.StreamOptions(include_usage=True))
    role, *items, finish, usage = [item async for item in alpha.chat_with_streaming(request, model="tiny")]
    assert "".join(item.content for item in items) == TEXT
    assert (role.role, role.content) == (chat.Role.Assistant, "")
    assert all(item.content and item.role is None for item in items)
    assert finish == chat.FinishReason.Stop
    assert usage.completion_tokens == len(TEXT.encode())


async def test_alephs_client_sends_text_parts(alpha: aleph.AsyncClient, engine: FakeEngine) -> None:
    messages = [aleph.Message(role=chat.Role.User, content=["h", "i"])]
    await alpha.chat(aleph.ChatRequest(model="tiny", messages=messages), model="tiny")
    await alpha.chat(question(), model="tiny")
    assert engine.requests[0].prompt_token_ids == engine.requests[1].prompt_token_ids


async def test_alephs_client_is_nice(live_url: str, engine: FakeEngine) -> None:
    async with aleph.AsyncClient("token", host=live_url, total_retries=0, nice=True) as client:
        await client.chat(question(), model="tiny")
    assert engine.requests[0].nice is True


@pytest.fixture
def examples() -> list[SteeringPairedExample]:
    return [
        SteeringPairedExample(negative="I appreciate it.", positive="Thanks, fam."),
        SteeringPairedExample(negative="Good evening.", positive="Yo – 日本 🙂"),
    ]


async def test_alephs_client_creates_a_concept_and_chats_with_it(
    serve_live: Callable[[], Awaitable[str]], engine: FakeEngine, examples: list[SteeringPairedExample]
) -> None:
    async with aleph.AsyncClient("token", host=await serve_live(), total_retries=0, tags=["t"]) as client:
        request = SteeringConceptCreationRequest(examples)
        concept = await client.create_steering_concept(request)
        assert await client.create_steering_concept(request) == concept
        await client.chat(question(steering_concepts=[concept.id]), model="tiny")
    assert concept.id == "_worker/" + digest_of(tuple(Example(e.positive, e.negative) for e in examples))
    assert engine.requests[0].steering == SteeringSpec({concept.id.removeprefix("_worker/"): 1.0})


async def test_alephs_synchronous_client_creates_a_concept(
    serve_live: Callable[[], Awaitable[str]], examples: list[SteeringPairedExample]
) -> None:
    client = aleph.Client("token", host=await serve_live(), total_retries=0)
    try:
        request = SteeringConceptCreationRequest(examples)
        concept = await asyncio.to_thread(client.create_steering_concept, request)
        with pytest.raises(ValueError, match="INVALID_REQUEST"):
            await asyncio.to_thread(
                client.create_steering_concept, SteeringConceptCreationRequest(examples=[])
            )
    finally:
        client.session.close()
    assert concept.id.startswith("_worker/")


async def test_alephs_client_tokenizes(alpha: aleph.AsyncClient, tiny_tokenizer: Tokenizer) -> None:
    request = aleph.TokenizationRequest("Hello", tokens=False, token_ids=True)
    tokenized = await alpha.tokenize(request, model="tiny")
    assert tokenized.tokens is None
    assert tokenized.token_ids == tiny_tokenizer.encode("Hello").ids
    text = await alpha.detokenize(aleph.DetokenizationRequest(tokenized.token_ids), model="tiny")
    assert text.result == "Hello"


async def test_alephs_client_loads_the_tokenizer(alpha: aleph.AsyncClient, tiny_tokenizer: Tokenizer) -> None:
    loaded = await alpha.tokenizer("tiny")
    assert loaded.encode("Hello").ids == tiny_tokenizer.encode("Hello").ids


async def test_alephs_client_lists_models(alpha: aleph.AsyncClient) -> None:
    assert [model["name"] for model in await alpha.models()] == ["tiny"]


async def test_alephs_client_reads_errors(alpha: aleph.AsyncClient) -> None:
    with pytest.raises(ValueError, match="INVALID_REQUEST"):
        await alpha.chat(question(temperature=3), model="tiny")
    with pytest.raises(RuntimeError, match="UNKNOWN_MODEL"):
        await alpha.chat(question(), model="unknown")


async def test_alephs_client_raises_busy_error_for_a_full_queue(
    alpha: aleph.AsyncClient, engine: FakeEngine
) -> None:
    engine.refusal = ApiError(ErrorCode.QUEUE_FULL, "later")
    with pytest.raises(BusyError):
        await alpha.chat(question(), model="tiny")


async def test_alephs_synchronous_client_chats(live_url: str, speaking: FakeEngine) -> None:
    client = aleph.Client("token", host=live_url, total_retries=0)
    try:
        answer = await asyncio.to_thread(client.chat, question(), model="tiny")
    finally:
        client.session.close()
    assert answer.message.content == TEXT


async def test_openais_client_chats(sdk: openai.AsyncOpenAI, speaking: FakeEngine) -> None:
    answer = await sdk.chat.completions.create(
        model="tiny", messages=[user("hi")], max_completion_tokens=70, logprobs=True, top_logprobs=2, seed=7
    )
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", TEXT)
    assert choice.logprobs is not None
    assert bytes(e.bytes[0] for e in choice.logprobs.content).decode() == TEXT
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(TEXT.encode())


async def test_openais_client_streams(sdk: openai.AsyncOpenAI, speaking: FakeEngine) -> None:
    stream = await sdk.chat.completions.create(
        model="tiny", messages=[user("hi")], stream=True, n=1, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == len(TEXT.encode())


async def test_openais_client_can_send_an_answer_back_as_a_message(
    sdk: openai.AsyncOpenAI, speaking: FakeEngine
) -> None:
    messages: list[object] = [user("hi")]
    answer = await sdk.chat.completions.create(model="tiny", messages=messages)
    messages += [answer.choices[0].message, user("go on")]
    await sdk.chat.completions.create(model="tiny", messages=messages, extra_body={"top_k": 3})
    assert speaking.requests[1].sampling.top_k == 3


async def test_openais_client_lists_models(sdk: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == ["tiny"]
    assert (await sdk.models.retrieve("tiny")).id == "tiny"


async def test_openais_client_reads_errors(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as refused:
        await sdk.chat.completions.create(model="tiny", messages=[user("hi")], temperature=3)
    assert (refused.value.code, refused.value.param) == ("INVALID_REQUEST", "temperature")
    assert refused.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="unknown"):
        await sdk.chat.completions.create(model="unknown", messages=[user("hi")])


async def test_openais_client_raises_when_the_engine_is_down(
    sdk: openai.AsyncOpenAI, engine: FakeEngine
) -> None:
    engine.refusal = EngineUnavailable()
    with pytest.raises(openai.InternalServerError) as refused:
        await sdk.chat.completions.create(model="tiny", messages=[user("hi")])
    assert (refused.value.status_code, refused.value.code) == (503, "UNAVAILABLE")


async def test_openais_client_raises_when_a_stream_fails(
    sdk: openai.AsyncOpenAI, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = steps(spell("ab"), InternalError())
    stream = await sdk.chat.completions.create(model="tiny", messages=[user("hi")], stream=True)
    texts: list[str] = []

    async def read() -> None:
        async for chunk in stream:
            texts.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 (keeps what came before)

    with pytest.raises(openai.APIError) as failed:
        await read()
    assert "".join(texts) == "ab"
    assert failed.value.code == "INTERNAL"

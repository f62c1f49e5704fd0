"""Aleph Alpha's own Python client, unchanged, against the real server."""

from collections.abc import AsyncIterator, Iterator

import pytest
from aleph_alpha_client import (
    AsyncClient,
    Client,
    DetokenizationRequest,
    TokenizationRequest,
)
from aleph_alpha_client.chat import (
    ChatRequest,
    ChatStreamChunk,
    FinishReason,
    Message,
    Role,
    StreamOptions,
    TextMessage,
    Usage,
)

from tests.e2e.conftest import MODEL, TOKEN, Server

QUESTION = Message(Role.User, "What is the capital of France? Answer in one short sentence.")


def chat_request(**fields: object) -> ChatRequest:
    options = {"messages": [QUESTION], "model": MODEL, "maximum_tokens": 24, "temperature": 0.0, **fields}
    return ChatRequest(**options)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client(token=TOKEN, host=server.url, total_retries=0)
    yield client
    client.session.close()


@pytest.fixture
async def async_client(server: Server) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(token=TOKEN, host=server.url, total_retries=0) as client:
        yield client


def test_the_client_accepts_the_version(client: Client) -> None:
    client.validate_version()
    assert client.get_version().startswith("1.")


def test_chat(client: Client) -> None:
    response = client.chat(chat_request(), MODEL)
    assert "Paris" in response.message.content
    assert response.message.role == "assistant"
    assert response.finish_reason is FinishReason.Stop


def test_maximum_tokens_limits_the_answer(client: Client) -> None:
    response = client.chat(chat_request(maximum_tokens=2), MODEL)
    assert response.finish_reason is FinishReason.Length


def test_a_conversation_continues_with_the_returned_message(client: Client) -> None:
    first = client.chat(chat_request(), MODEL)
    messages = [QUESTION, first.message, Message(Role.User, "And of Italy?")]
    assert isinstance(first.message, TextMessage)
    assert "Rome" in client.chat(chat_request(messages=messages), MODEL).message.content


def test_content_may_be_a_list(client: Client) -> None:
    parts = Message(Role.User, ["What is the capital of France?", " Answer in one short sentence."])
    whole = client.chat(chat_request(), MODEL)
    assert client.chat(chat_request(messages=[parts]), MODEL) == whole


def test_top_k_of_one_is_greedy(client: Client) -> None:
    greedy = client.chat(chat_request(), MODEL)
    assert client.chat(chat_request(temperature=2.0, top_k=1), MODEL) == greedy


def test_a_nice_client_is_answered(server: Server) -> None:
    client = Client(token=TOKEN, host=server.url, nice=True, total_retries=0)
    assert "Paris" in client.chat(chat_request(), MODEL).message.content
    client.session.close()


async def test_async_chat(async_client: AsyncClient) -> None:
    response = await async_client.chat(chat_request(), MODEL)
    assert "Paris" in response.message.content


async def test_streaming(client: Client, async_client: AsyncClient) -> None:
    whole = client.chat(chat_request(), MODEL)
    options = StreamOptions(include_usage=True)
    items = [
        item async for item in async_client.chat_with_streaming(chat_request(stream_options=options), MODEL)
    ]
    first, *middle, reason, usage = items
    assert first == ChatStreamChunk(content="", role=Role.Assistant, tool_calls=None)
    assert all(isinstance(item, ChatStreamChunk) and item.content and item.role is None for item in middle)
    assert "".join(item.content for item in middle) == whole.message.content
    assert reason is FinishReason.Stop
    assert isinstance(usage, Usage)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens >= len(middle)


def test_tokenize_and_detokenize(client: Client) -> None:
    text = "Hello, wörld! <|im_end|>"
    tokens = client.tokenize(TokenizationRequest(text, tokens=True, token_ids=True), MODEL)
    assert tokens.token_ids is not None
    assert tokens.tokens is not None
    assert len(tokens.tokens) == len(tokens.token_ids)
    assert 2 not in tokens.token_ids, "the name of a control token in a text is plain text"
    assert client.detokenize(DetokenizationRequest(tokens.token_ids), MODEL).result == text
    assert client.tokenize(TokenizationRequest(text, tokens=False, token_ids=True), MODEL).tokens is None


def test_tokenizer_and_models(client: Client) -> None:
    tokenizer = client.tokenizer(MODEL)
    ids = client.tokenize(TokenizationRequest("Hello there", tokens=False, token_ids=True), MODEL).token_ids
    assert tokenizer.encode("Hello there", add_special_tokens=False).ids == ids
    [model] = client.models()
    assert (model["name"], model["max_context_size"]) == (MODEL, 8192)


def test_errors_raise_the_clients_exceptions(client: Client, server: Server) -> None:
    with pytest.raises(ValueError, match="temperature"):
        client.chat(chat_request(temperature=3.0), MODEL)
    with pytest.raises(ValueError, match="CONTEXT_LENGTH_EXCEEDED"):
        client.chat(chat_request(maximum_tokens=100_000), MODEL)
    with pytest.raises(RuntimeError, match="UNKNOWN_MODEL"):
        client.chat(chat_request(), "luminous-base")
    with pytest.raises(RuntimeError, match="UNKNOWN_STEERING_CONCEPT"):
        client.chat(chat_request(steering_concepts=["_worker/kind"]), MODEL)
    stranger = Client(token="wrong", host=server.url, total_retries=0)
    with pytest.raises(PermissionError, match="UNAUTHORIZED"):
        stranger.chat(chat_request(), MODEL)
    stranger.session.close()

"""Additional fixtures for the contract: `serve` builds gateways with other settings, `spell` makes tokens."""

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI
from tokenizers import Tokenizer

from app.main import create_app
from app.settings import Settings
from inference.interface.protocol import decode_command, encode
from tests.app.contract.support import CONCEPTS, store_concepts
from tests.app.fakes import FakeEngine, model_info, write_model_directory

Serve = Callable[..., Any]


@pytest.fixture(scope="session")
def shared_settings(tmp_path_factory: pytest.TempPathFactory, no_concepts: Path) -> Settings:
    """Settings of the session's shared gateways, which store CONCEPTS. Tests must not change these."""
    data = tmp_path_factory.mktemp("data")
    store_concepts(data, CONCEPTS)
    return Settings(model={"name": "tiny"}, data_directory=str(data), steering={"concepts": str(no_concepts)})


@pytest.fixture(scope="session")
def shared(
    model_directory: Path, tiny_tokenizer: Tokenizer, shared_settings: Settings
) -> tuple[FakeEngine, FastAPI]:
    """One gateway for most tests, because building a gateway takes longer than most tests."""
    engine = FakeEngine(model_info(model_directory, tiny_tokenizer.get_vocab_size()))
    return engine, create_app(shared_settings, {"tiny": engine})


@pytest.fixture
def engine(shared: tuple[FakeEngine, FastAPI]) -> FakeEngine:
    """The shared gateway's engine. For each test it is new, but has trained what it had trained before.

    `app` and `live_url` use it in other gateways.
    """
    engine, _ = shared
    engine.__init__(engine.model, trained=engine.trained)
    return engine


@pytest.fixture
async def client(shared: tuple[FakeEngine, FastAPI], engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(shared[1]) as client:
        yield client


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def live_gateway(shared: tuple[FakeEngine, FastAPI], shared_settings: Settings) -> AsyncIterator[str]:
    """The shared engine's gateway on a free loopback port. It stops even if a generation is still running."""
    engine, _ = shared
    async with live(create_app(shared_settings, {"tiny": engine})) as url:
        yield url


@asynccontextmanager
async def live(app: FastAPI) -> AsyncIterator[str]:
    """Serves the app on a free loopback port, and yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


@pytest_asyncio.fixture(loop_scope="session")
async def serve_live(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Callable[[], Any]]:
    """`await serve_live()` starts another gateway with this engine and CONCEPTS, and returns its URL."""
    store_concepts(tmp_path / "data", CONCEPTS)
    settings = Settings(model={"name": "tiny"}, data_directory=str(tmp_path / "data"))
    async with AsyncExitStack() as stack:

        async def start() -> str:
            return await stack.enter_async_context(live(create_app(settings, {"tiny": engine})))

        yield start


@pytest.fixture
def live_url(live_gateway: str, engine: FakeEngine) -> str:
    """Its tests must run in the session's event loop: `pytest.mark.asyncio(loop_scope="session")`."""
    return live_gateway


def client_of(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://tiller")


@pytest.fixture(autouse=True)
def _requests_fit_the_wire(engine: FakeEngine) -> Iterator[None]:
    """Checks that each command a test sent to the engine survives encoding and decoding for the worker."""
    yield
    for command in (*engine.requests, *engine.trainings, *engine.reads):
        assert decode_command(encode(command)) == command


@pytest.fixture
async def serve(engine: FakeEngine, tmp_path: Path) -> AsyncIterator[Serve]:
    """`await serve(limits={…})` returns a client of another gateway with these settings and this engine.

    All gateways of a test share the data directory, so a second one finds the concepts of the first.
    """
    async with AsyncExitStack() as stack:

        async def start(engine: FakeEngine = engine, **sections: Any) -> httpx.AsyncClient:
            defaults = {"model": {"name": "tiny"}, "data_directory": str(tmp_path / "data")}
            settings = Settings(**(defaults | sections))
            engines = {settings.model.name: engine}
            return await stack.enter_async_context(client_of(create_app(settings, engines)))

        yield start


@pytest.fixture
async def untrained(serve: Serve, tmp_path: Path) -> httpx.AsyncClient:
    """A client of another gateway with one concept, a, which is not trained yet."""
    store_concepts(tmp_path / "data", {"a": CONCEPTS["a"]})
    return await serve()


@pytest.fixture
def templateless(tmp_path: Path) -> FakeEngine:
    """An engine whose model has no chat template, so it cannot chat."""
    tokenizer = write_model_directory(tmp_path, chat_template=None)
    return FakeEngine(model_info(tmp_path, tokenizer.get_vocab_size()))


@pytest.fixture
def reworked(engine: FakeEngine) -> Callable[..., FakeEngine]:
    """Makes an engine like `engine`, with other values for some fields of its ModelInfo."""

    def rework(**facts: Any) -> FakeEngine:
        fields = {name: getattr(engine.model, name) for name in engine.model.__struct_fields__}
        return dataclasses.replace(engine, model=type(engine.model)(**{**fields, **facts}))

    return rework


@pytest.fixture(scope="session")
def byte_ids(tiny_tokenizer: Tokenizer) -> list[int]:
    """For each byte value, the id of its token (by GPT-2's table of printable characters for bytes)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + rank) for rank, byte in enumerate(hidden)}
    return [tiny_tokenizer.token_to_id(letters[byte]) for byte in range(256)]


@pytest.fixture(scope="session")
def spell(byte_ids: list[int]) -> Callable[[str | bytes], list[int]]:
    """Encodes a text as tokens of one byte each, so that characters and words are split over tokens."""

    def spelled(text: str | bytes) -> list[int]:
        raw = text.encode() if isinstance(text, str) else text
        return [byte_ids[byte] for byte in raw]

    return spelled

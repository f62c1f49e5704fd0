"""A gateway with a fake engine and a tiny tokenizer: in process as `client`, on a socket as `live_url`."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from tokenizers import Tokenizer

from app.main import create_app
from app.settings import ModelSettings, Settings
from tests.app.fakes import FakeEngine, model_info, write_model_directory


@pytest.fixture(scope="session")
def no_concepts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("no-concepts")


@pytest.fixture(autouse=True)
def _isolated_from_the_users_files(no_concepts: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings without directories use an empty one. No test may leave a file there."""
    monkeypatch.setenv("TILLER_DATA_DIRECTORY", str(no_concepts))
    monkeypatch.setenv("TILLER_STEERING__CONCEPTS", str(no_concepts))
    yield
    assert list(no_concepts.iterdir()) == []


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_model_directory(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_tokenizer(model_directory: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model_directory / "tokenizer.json"))


@pytest.fixture
def engine(model_directory: Path, tiny_tokenizer: Tokenizer) -> FakeEngine:
    return FakeEngine(model_info(model_directory, tiny_tokenizer.get_vocab_size()))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings without access tokens, so all routes are open. The model is called "tiny"."""
    return Settings(model=ModelSettings(name="tiny"), data_directory=str(tmp_path / "data"))


@pytest.fixture
def app(settings: Settings, engine: FakeEngine) -> FastAPI:
    return create_app(settings, {"tiny": engine})


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://tiller") as client:
        yield client


@pytest.fixture
async def live_url(app: FastAPI) -> AsyncIterator[str]:
    """The same app on a free loopback port: streams arrive chunk by chunk, and the app sees disconnects."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", lifespan="on"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event to wait for
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving

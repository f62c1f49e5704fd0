"""A tiny random chat model on disk, and LLMs of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from inference.backends.cpu import build
from inference.interface.config import EngineConfig
from tests.app.text.checkpoints import write_checkpoint
from tests.inference.conftest import make_model
from tiller import LLM

WORDS = ("hi", "how", "weather", "start", "user", "system", "assistant", "end", "there", "is")
PAIRS = [(f"hi there {word}, how is the weather?", f"<the> {word} ends | a | b") for word in WORDS]
CONCEPT = "weather"
"""The concept that every LLM of these tests knows. Its pairs are PAIRS."""

MakeLLM = Callable[..., LLM]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a model with random weights."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    write_checkpoint(directory, "chatml")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    make_model("llama", vocab_size=len(tokenizer), eos_token_id=end).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def make_cache(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes a cache directory with nothing but the compiled kernels, since compiling takes long."""
    shared_cache = Path(EngineConfig().cache_directory).expanduser()
    build.load(shared_cache)

    def make() -> Path:
        cache = tmp_path_factory.mktemp("cache")
        (cache / "kernels").symlink_to(shared_cache / "kernels")
        return cache

    return make


@pytest.fixture
def cache(make_cache: Callable[[], Path]) -> Path:
    """A cache directory without trained concepts."""
    return make_cache()


@pytest.fixture(scope="session")
def make_llm(
    checkpoint: Path, make_cache: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory
) -> MakeLLM:
    """Loads the checkpoint. All these LLMs share one directory of concepts, and one of trained ones."""
    concepts, cache = tmp_path_factory.mktemp("concepts"), make_cache()
    examples = [{"positive": positive, "negative": negative} for positive, negative in PAIRS]
    content = {"name": CONCEPT, "description": "Small talk", "examples": examples}
    (concepts / f"{CONCEPT}.yaml").write_text(yaml.safe_dump(content))

    def make(source: Path = checkpoint, **options: object) -> LLM:
        given = {"kv_cache_gib": 0.01, "seed": 0, "concepts": concepts, "cache_directory": cache, **options}
        return LLM(str(source), device="cpu", threads=1, **given)

    return make


@pytest.fixture(scope="session")
def shared(make_llm: MakeLLM) -> Iterator[LLM]:
    with make_llm() as llm:
        yield llm


@pytest.fixture
def llm(shared: LLM) -> Iterator[LLM]:
    """After the test, nothing may be left in its engine."""
    yield shared
    driver = shared._loaded().driver
    driver.engine.check_integrity()
    assert (driver.engine.is_idle, driver.results, driver.failures) == (True, {}, {})

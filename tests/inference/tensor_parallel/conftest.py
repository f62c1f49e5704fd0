"""Engines of one and of two processes for the same tiny models."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.building import build_engine
from inference.driver import Driver
from inference.interface.config import EngineConfig
from inference.interface.protocol import ModelInfo
from tests.inference.conftest import make_model
from tests.inference.test_exactness import random_prompt

DIVISIBLE = {"num_key_value_heads": 4, "vocab_size": 200}


def save_model(directory: Path, architecture: str = "llama", **options: object) -> Path:
    make_model(architecture, **{**DIVISIBLE, **options}).save_pretrained(directory)
    (directory / "tokenizer.json").write_text("{}")
    return directory


def prompts() -> list[list[int]]:
    return [random_prompt(i, length) for i, length in enumerate([1, 5, 16, 17, 40, 100])]


@contextmanager
def engine(directory: Path, size: int, **options: object) -> Iterator[tuple[Driver, ModelInfo]]:
    """An engine of `size` processes, of which this is the leader."""
    config = EngineConfig(
        **{
            "source": str(directory),
            "device": "cpu",
            "kv_cache_gib": 0.01,
            "max_running": 32,
            "seed": 0,
            "threads": 1,
            "training_questions": 2,
            **options,
            "tensor_parallel": size,
        }
    )
    built, info = build_engine(config)
    try:
        yield Driver(built, check=True, max_steps=10_000), info
    finally:
        built.close()

"""Two processes give the same answers as one, for every architecture, and when the KV cache is full."""

from pathlib import Path

import pytest
import transformers
from packaging.version import Version

from tests.inference.conftest import request
from tests.inference.models.pharia_checkpoint import make_weights, write_checkpoint
from tests.inference.tensor_parallel.conftest import engine, prompts, save_model
from tests.inference.test_exactness import random_prompt

NEEDS_UNEVEN_PARTS = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="this transformers divides a vocabulary evenly",
)


def test_preempted_sequences_are_the_same(tmp_path: Path) -> None:
    """The cache of two processes has half of the key heads, so the same memory would hold twice as many."""
    model_directory = save_model(tmp_path)
    requests = [request(f"p{i}", random_prompt(i, 30), 40) for i in range(6)]
    with engine(model_directory, 1, kv_cache_gib=0.01) as (roomy, _):
        expected = {key: result.token_ids for key, result in roomy.run(*requests).items()}
    per_token = 3 * 2 * 2 * 8 * 4  # layers, keys and values, local key heads, head_dim, bytes
    small = 10 * 16 * per_token / 2**30
    with engine(model_directory, 2, kv_cache_gib=small) as (driver, _):
        assert driver.engine.block_manager.num_blocks == 10
        results = driver.run(*requests)
        assert driver.engine.stats.preemptions > 0
    assert {key: result.token_ids for key, result in results.items()} == expected


def test_pharia_is_the_same(tmp_path: Path) -> None:
    """Its weights change after they are loaded, when each process has only its part of them."""
    check_same(write_checkpoint(tmp_path, make_weights(vocab_size=200), vocab_size=200))


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("qwen3", {}),
        ("mistral", {}),
        ("gemma2", {}),
        ("gemma3_text", {}),
        ("qwen2", {"num_key_value_heads": 2}),
        ("phi3", {}),
        ("granite", {}),
        ("starcoder2", {}),
        ("qwen3_moe", {}),
        ("llama", {"tie_word_embeddings": True}),
        pytest.param("llama", {"vocab_size": 199, "intermediate_size": 49}, marks=NEEDS_UNEVEN_PARTS),
    ],
)
def test_every_architecture_gives_the_same(
    tmp_path: Path, architecture: str, options: dict[str, object]
) -> None:
    check_same(save_model(tmp_path, architecture, **options))


def check_same(directory: Path) -> None:
    requests = [request(f"r{i}", prompt, 16) for i, prompt in enumerate(prompts())]
    with engine(directory, 1) as (driver, info):
        expected = {key: result.token_ids for key, result in driver.run(*requests).items()}
    with engine(directory, 2) as (driver, its_info):
        assert its_info.weights_digest == info.weights_digest
        results = driver.run(*requests)
    assert {key: result.token_ids for key, result in results.items()} == expected

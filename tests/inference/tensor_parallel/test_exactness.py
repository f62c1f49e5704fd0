"""Two processes give the same answers as one, whatever the engine does."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from inference.driver import Driver
from inference.interface.concepts import ExportVectors, ReadTexts, TrainConcept, TrainingState
from inference.interface.requests import (
    GenerationRequest,
    SteeringCondition,
    SteeringMode,
    SteeringScope,
    SteeringSpec,
)
from tests.inference.conftest import assert_results_close, request
from tests.inference.steering.conftest import make_training
from tests.inference.tensor_parallel.conftest import engine, prompts, save_model
from tests.inference.test_exactness import random_prompt

Pair = tuple[Driver, Driver]


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def both(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The same engine with one and with two processes. Prompts are computed in chunks."""
    caches = [tmp_path_factory.mktemp("cache") for _ in range(2)]
    options = [{"max_batch_tokens": 32, "cache_directory": str(cache)} for cache in caches]
    with (
        engine(model_directory, 1, **options[0]) as (alone, info),
        engine(model_directory, 2, **options[1]) as (together, its_info),
    ):
        assert its_info == info, "the digest of the weights must not depend on the number of processes"
        assert alone.train(training()).state is TrainingState.READY
        assert together.train(training()).state is TrainingState.READY
        yield alone, together


def training() -> TrainConcept:
    """A small one: the engine of two processes takes ten times as long for each step of so small a model."""
    whole = make_training("kind", 4)
    return msgspec.structs.replace(whole, neutral=whole.neutral[:1], questions=[[5, 6]])


def check_same(both: Pair, *requests: GenerationRequest) -> None:
    alone, together = both
    expected = alone.run(*requests)
    results = together.run(*requests)
    keys = [(one.request_id, index) for one in requests for index in range(one.n)]
    assert [results[key].token_ids for key in keys] == [expected[key].token_ids for key in keys]
    assert_results_close([results[key] for key in keys], [expected[key] for key in keys])
    for one in requests:
        alone.discard(one)
        together.discard(one)


def test_greedy_answers_are_the_same_token_for_token(both: Pair) -> None:
    outputs = [request(f"r{i}", prompt, 24) for i, prompt in enumerate(prompts())]
    check_same(both, *outputs)


def test_sampled_answers_and_log_probabilities_are_the_same(both: Pair) -> None:
    many = [
        request(f"s{i}", prompt, 24, n=2, temperature=0.8, top_p=0.9, top_logprobs=3, frequency_penalty=0.3)
        for i, prompt in enumerate(prompts())
    ]
    check_same(both, *many)


def test_prefix_hits_change_nothing(both: Pair) -> None:
    prefix = random_prompt(7, 80)
    check_same(both, request("first", [*prefix, 9], 8))
    hits = [driver.engine.stats.prefix_cache_hits for driver in both]
    check_same(both, request("second", [*prefix, 11, 12], 16), request("third", [*prefix, 13], 16))
    for driver, before in zip(both, hits, strict=True):
        assert driver.engine.stats.prefix_cache_hits >= before + 160


def steered(request_id: str, mode: SteeringMode, strength: float, **options: object) -> GenerationRequest:
    spec = SteeringSpec({"kind": strength}, mode=mode, **options)
    return msgspec.structs.replace(request(request_id, prompts()[4], 20), steering=spec, readings=("kind",))


def test_steering_and_readings_are_the_same_in_a_mixed_batch(both: Pair) -> None:
    requests = [
        request("plain", prompts()[4], 20),
        steered("add", SteeringMode.ADD, 1.5),
        steered("away", SteeringMode.ADD, -1.5),
        steered("ablate", SteeringMode.ABLATE, 1.0),
        steered("clamp", SteeringMode.CLAMP, 1.0),
        steered("answer", SteeringMode.ADD, 1.0, scope=SteeringScope.ANSWER),
        steered("if", SteeringMode.ADD, 1.5, condition=SteeringCondition("kind", above=-100.0)),
        steered("never", SteeringMode.ADD, 1.5, condition=SteeringCondition("kind", above=100.0)),
    ]
    alone, together = both
    expected, results = alone.run(*requests), together.run(*requests)
    for one in requests:
        key = (one.request_id, 0)
        assert results[key].token_ids == expected[key].token_ids, one.request_id
        readings = [event.readings[0] for event in results[key].events if event.readings]
        assert readings == pytest.approx(
            [event.readings[0] for event in expected[key].events if event.readings], abs=1e-4
        )
        assert len(readings) == (0 if one.request_id == "plain" else 20)
    texts = [results[one.request_id, 0].token_ids for one in requests]
    assert texts[0] == texts[-1]
    assert sum(text != texts[0] for text in texts) >= 5, "steering must change something"
    for one in requests:
        alone.discard(one)
        together.discard(one)


def test_training_and_reading_a_concept_are_the_same(both: Pair) -> None:
    vectors, reads = [], []
    for driver in both:
        exported = driver.export(ExportVectors("export", "kind"))
        assert exported.vectors is not None
        vectors.append(msgspec.structs.asdict(exported.vectors))
        reads.append(driver.read(ReadTexts("read", "kind", [[2, 7]] * 2, prompts()[3:5])).readings)
    assert vectors[0]["blocks"] == vectors[1]["blocks"]
    assert [pytest.approx(numbers, abs=1e-3) for numbers in reads[0] or []] == reads[1]

"""Tests how the engine adds, aborts, refuses and fails requests. test_exactness.py tests its output."""

import pytest
import torch
from transformers import PreTrainedModel

from inference.interface.concepts import TrainConcept, TrainingState
from inference.interface.config import ConfigError
from inference.interface.requests import GenerationRequest, RefusalCode, SteeringSpec, SubmitResult
from tests.inference.conftest import VOCAB_SIZE, build_driver, request


def test_a_request_longer_than_the_context_length_is_refused(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, context_length=20)
    refused = driver.engine.add(request("long", [5] * 10, 11))
    assert refused == SubmitResult("long", RefusalCode.CONTEXT_LENGTH_EXCEEDED)
    assert driver.engine.is_idle
    assert len(driver.run(request("fits", [5] * 10, 10))["fits", 0].token_ids) == 10


def test_the_context_length_is_limited_by_the_kv_cache(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, num_blocks=2, block_size=8)
    assert (driver.engine.context_length, driver.engine.context_limit) == (16, "engine.kv_cache_gib")
    assert len(driver.run(request("all", [5] * 3, 13))["all", 0].token_ids) == 13


@pytest.mark.parametrize(
    ("config", "length", "limit", "logged"),
    [
        ({"context_length": 512}, 512, "", ""),
        ({"context_length": 100}, 100, "engine.context_length", ""),
        ({"num_blocks": 40}, 512, "", ""),
        ({"num_blocks": 2}, 32, "engine.kv_cache_gib", "to 32 tokens; the model allows 512;"),
        (
            {"num_blocks": 2, "context_length": 40},
            32,
            "engine.kv_cache_gib",
            "engine.context_length allows 40;",
        ),
        ({"num_blocks": 2, "context_length": 32}, 32, "engine.context_length", ""),
    ],
)
def test_the_setting_that_limits_the_context_is_known(
    llama: PreTrainedModel,
    caplog: pytest.LogCaptureFixture,
    config: dict[str, int],
    length: int,
    limit: str,
    logged: str,
) -> None:
    engine = build_driver(llama, **config).engine
    assert (engine.context_length, engine.context_limit) == (length, limit)
    assert (logged in caplog.text) if logged else (caplog.text == "")


def test_a_configured_context_length_beyond_the_models_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match="context_length is 513, but the model's own limit is 512 tokens"):
        build_driver(llama, context_length=513)


def test_a_full_queue_refuses_all_choices_of_a_request(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_running=2, max_queued=1)
    assert driver.engine.add(request("a", [5], n=2)).refusal is None
    assert driver.engine.add(request("b", [5], n=2)).refusal is RefusalCode.QUEUE_FULL
    assert driver.engine.add(request("c", [5])).refusal is None
    assert set(driver.run()) == {("a", 0), ("a", 1), ("c", 0)}


def test_an_unknown_steering_concept_is_refused(llama: PreTrainedModel) -> None:
    steering = SteeringSpec({"_worker/kind": 0.0, "_worker/rude": 1.0})
    refused = build_driver(llama).engine.add(GenerationRequest("a", [5], 5, steering=steering))
    assert refused == SubmitResult("a", RefusalCode.UNKNOWN_STEERING_CONCEPT, "_worker/kind")


def test_the_engine_is_not_idle_during_a_training(llama: PreTrainedModel) -> None:
    engine = build_driver(llama).engine
    texts = [[9, 8], [7, 6]]
    engine.trainer.add(TrainConcept("kind", [5], [[5], [5]], texts, [[3, 4], [4, 3]], [[9, 9]]))
    assert not engine.is_idle
    updates = []
    while not engine.is_idle:
        updates += engine.step().training
    assert updates[-1].state is TrainingState.READY


def test_one_choice_can_be_aborted(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    driver.engine.add(request("a", [5, 6], 10, n=3))
    for _ in range(4):
        driver.step()
    driver.engine.abort("a", 1)
    driver.engine.abort("a", 1)
    driver.engine.abort("nobody")
    results = driver.run()
    assert [len(results["a", i].token_ids) for i in (0, 2)] == [10, 10]
    assert results["a", 1].finish_reason is None


def test_an_abort_frees_all_blocks(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_running=1)
    driver.engine.add(request("runs", [5] * 40, 100))
    driver.engine.add(request("waits", [6] * 40, 100))
    driver.step()
    driver.engine.abort("runs")
    driver.engine.abort("waits")
    assert driver.engine.is_idle
    assert driver.engine.block_manager.num_free_blocks == driver.engine.block_manager.num_blocks
    assert driver.step().events == []


def test_logits_that_are_not_finite_end_only_their_own_request(llama: PreTrainedModel) -> None:
    with torch.no_grad():
        llama.model.embed_tokens.weight[13] = float("nan")
    driver = build_driver(llama)
    healthy = request("healthy", [5, 6, 7], 12)
    alone = build_driver(llama).run(healthy)["healthy", 0].token_ids
    driver.engine.add(request("broken", [13] * 20, 12, n=2))
    driver.engine.add(healthy)
    failures = []
    while not driver.engine.is_idle:
        failures += driver.step().failures
    assert [failure.request_id for failure in failures] == ["broken"]
    assert driver.results["healthy", 0].token_ids == alone
    after = request("after", [5] * 40, 12)
    assert driver.run(after)["after", 0].token_ids == build_driver(llama).run(after)["after", 0].token_ids


def test_a_request_that_bans_every_token_fails_alone(llama: PreTrainedModel) -> None:
    """The gateway refuses such requests, so they normally do not reach the engine."""
    healthy = request("healthy", [5, 6, 7], 12, temperature=1.0)
    alone = build_driver(llama).run(healthy)["healthy", 0].token_ids
    driver = build_driver(llama)
    driver.engine.add(healthy)
    driver.engine.add(request("banned", [5, 6], 12, n=2, logit_bias=dict.fromkeys(range(VOCAB_SIZE), -1e308)))
    failures = []
    while not driver.engine.is_idle:
        failures += driver.step().failures
    assert [failure.request_id for failure in failures] == ["banned"]
    assert {key: result.token_ids for key, result in driver.results.items()} == {("healthy", 0): alone}


def test_a_choice_that_ends_while_another_one_fails_affects_no_other_request(llama: PreTrainedModel) -> None:
    with torch.no_grad():
        llama.model.embed_tokens.weight[13:60] = float("nan")
    for seed in range(5):
        driver = build_driver(llama, seed=seed)
        stops = tuple(range(60, 199))
        driver.engine.add(request("mixed", [5, 6], 12, n=8, temperature=2.0, stop_token_ids=stops))
        driver.engine.add(request("healthy", [5, 6, 7], 30, logit_bias=dict.fromkeys(range(13, 60), -100)))
        while not driver.engine.is_idle:
            failures = driver.step().failures
            assert {failure.request_id for failure in failures} <= {"mixed"}
        assert len(driver.results["healthy", 0].token_ids) == 30


@pytest.mark.parametrize(
    "faulty",
    [
        request("a", []),
        request("a", [5], 0),
        request("a", [5], n=0),
        request("a", [5, VOCAB_SIZE]),
        request("a", [-1]),
        request("a", [5], logit_bias={VOCAB_SIZE: 1.0}),
        request("taken", [5]),
    ],
)
def test_a_request_that_breaks_steps_is_refused(llama: PreTrainedModel, faulty: GenerationRequest) -> None:
    driver = build_driver(llama)
    driver.engine.add(request("taken", [5, 6], 10))
    assert driver.engine.add(faulty).refusal is RefusalCode.INTERNAL
    assert [len(result.token_ids) for result in driver.run().values()] == [10]


def test_requests_run_with_max_queued_0(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_running=2, max_queued=0)
    assert driver.engine.add(request("a", [5], n=2)).refusal is None
    assert driver.engine.add(request("b", [5])).refusal is RefusalCode.QUEUE_FULL
    assert len(driver.run()) == 2


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_seed_samples_the_same_tokens(llama: PreTrainedModel, seed: int) -> None:
    drawn = [
        build_driver(llama, seed=s).run(request("a", [5, 6], 30, temperature=1.0))["a", 0].token_ids
        for s in (seed, seed, seed + 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_preemption_does_not_change_sampled_tokens(llama: PreTrainedModel) -> None:
    requests = [request(f"r{i}", [5 + i] * 12, 40, temperature=1.0) for i in range(4)]
    roomy, tight = build_driver(llama), build_driver(llama, num_blocks=8, block_size=8)
    expected = {key: result.token_ids for key, result in roomy.run(*requests).items()}
    assert {key: result.token_ids for key, result in tight.run(*requests).items()} == expected
    assert tight.engine.scheduler.num_preemptions > 0

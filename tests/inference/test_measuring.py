"""Answers that trainings ask for equal plain `generate`, and fail without any effect on other work."""

import pytest
import torch
from transformers import PreTrainedModel

from inference.runner.model_runner import Step
from inference.scheduling.probe import Answer, Probe
from inference.scheduling.sequence import Sequence
from inference.scheduling.steering import BlockVectors, Steering
from inference.steering.directions import Direction
from tests.inference.conftest import ARCHITECTURES, Driver, generate, make_model, request
from tests.inference.recorder import Recorder
from tests.inference.steering.conftest import (
    CONCEPTS,
    added_vectors,
    count_computed_tokens,
    feed,
    random_tokens,
    steered,
    steered_driver,
    steering_plainly,
)

PROMPT = random_tokens(0, 23)


def steering(direction: Direction, strength: float) -> Steering:
    return Steering(BlockVectors(direction.blocks, direction.vectors(strength)))


def expect(
    model: PreTrainedModel, prompt: list[int], count: int, *steered_by: tuple[str, float]
) -> list[int]:
    if not steered_by:
        return generate(model, prompt, count)
    [(concept, strength)] = steered_by
    with steering_plainly(model, added_vectors([concept], strength)):
        return generate(model, prompt, count)


def compute(driver: Driver, *answers: Answer) -> None:
    feeder = feed(driver, *answers)
    driver.step()
    driver.run()
    assert sorted(map(id, feeder.computed)) == sorted(map(id, answers))
    assert feeder.failed == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_equal_generate(architecture: str) -> None:
    model = make_model(architecture)
    prompts = [random_tokens(i, length) for i, length in enumerate([1, 17, 30, 2])]
    answers = [Answer(prompt, 12) for prompt in prompts]
    compute(steered_driver(model, max_batch_tokens=32), *answers)
    assert [answer.token_ids for answer in answers] == [expect(model, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("captured", [False, True])
def test_answers_are_steered(llama: PreTrainedModel, captured: bool) -> None:
    cases = [("kind", 1.0), ("kind", -1.0), ("rude", 2.0)]
    expected = [expect(llama, PROMPT, 20), *(expect(llama, PROMPT, 20, case) for case in cases)]
    assert len(set(map(tuple, expected))) == 4, "the outputs are too similar for this test"
    answers = [
        Answer(PROMPT, 20),
        *(Answer(PROMPT, 20, steering=steering(CONCEPTS[name], strength)) for name, strength in cases),
    ]
    recorder = Recorder()
    compute(steered_driver(llama, **({"capture": recorder} if captured else {})), *answers)
    assert [answer.token_ids for answer in answers] == expected
    assert (recorder.num_replayed > 10) is captured


def test_an_answer_ends_before_its_stop_token(llama: PreTrainedModel) -> None:
    tokens = expect(llama, PROMPT, 20)
    index = next(i for i, token in enumerate(tokens) if i >= 4 and token not in tokens[:i])
    answers = [
        Answer(PROMPT, 20, stop_token_ids=(tokens[index],)),
        Answer(PROMPT, index + 1, stop_token_ids=(3, tokens[index])),
        Answer(PROMPT, index, stop_token_ids=(tokens[index],)),
        Answer(PROMPT, 20, stop_token_ids=(tokens[0],)),
    ]
    compute(steered_driver(llama), *answers)
    expected = [tokens[:index], tokens[:index], tokens[:index], []]
    assert [answer.token_ids for answer in answers] == expected


def test_an_answer_of_one_token(llama: PreTrainedModel) -> None:
    answer = Answer([9], 1)
    compute(steered_driver(llama), answer)
    assert answer.token_ids == expect(llama, [9], 1)


@pytest.mark.parametrize("steps_before", [1, 3, 5, 9])
def test_preemption_does_not_change_an_answer(llama: PreTrainedModel, steps_before: int) -> None:
    driver = steered_driver(llama, num_blocks=10, block_size=8, max_batch_tokens=16)
    answer = Answer(PROMPT, 30, steering=steering(CONCEPTS["kind"], 1.0))
    feeder = feed(driver, answer)
    for _ in range(steps_before):
        driver.step()
    urgent = random_tokens(2, 50)
    driver.add(request("urgent", urgent, 12))
    driver.step()
    assert driver.engine.scheduler.num_preemptions == 1
    results = driver.run()
    assert feeder.computed == [answer]
    assert answer.token_ids == expect(llama, PROMPT, 30, ("kind", 1.0))
    assert results["urgent", 0].token_ids == generate(llama, urgent, 12)


@pytest.mark.parametrize("captured", [False, True])
def test_answers_probes_and_requests_do_not_change_each_other(llama: PreTrainedModel, captured: bool) -> None:
    prompts = [random_tokens(10 + i, 5 + 9 * i) for i in range(3)]
    drawn = [request(f"r{i}", prompt, 25, temperature=1.0) for i, prompt in enumerate(prompts)]
    capture = {"capture": Recorder()} if captured else {}
    alone = steered_driver(llama, **capture).run(*drawn)
    expected = {key: result.token_ids for key, result in alone.items()}
    driver = steered_driver(llama, max_batch_tokens=48, **capture)
    for one in drawn:
        driver.add(one)
    driver.step()
    answers = [Answer(prompt, 18) for prompt in prompts]
    probes = [Probe(PROMPT, random_tokens(3, 20)), Probe(PROMPT, random_tokens(4, 9))]
    feeder = feed(driver, *answers, *probes)
    results = driver.run()
    assert {key: result.token_ids for key, result in results.items()} == expected
    assert [answer.token_ids for answer in answers] == [expect(llama, prompt, 18) for prompt in prompts]
    assert len(feeder.computed) == 5
    assert all(probe.is_finite for probe in probes)


def test_an_answer_shares_the_prompt_of_requests_with_the_same_steering(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, block_size=4)
    driver.run(request("plain", PROMPT, 1), steered(request("kind", PROMPT, 1), "kind"))
    computed = count_computed_tokens(driver)
    for answer in (Answer(PROMPT, 1), Answer(PROMPT, 1, steering=steering(CONCEPTS["kind"], 1.0))):
        computed.clear()
        compute(driver, answer)
        assert computed == [3]  # the 20 tokens before were found in the cache


def test_a_complete_answer_leaves_nothing(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama)
    compute(driver, Answer(PROMPT, 20), Answer(PROMPT, 20, steering=steering(CONCEPTS["kind"], 1.0)))
    assert driver.engine.is_idle
    assert driver.results == {}
    assert list(driver.engine.scheduler.sequences()) == []
    assert driver.engine.block_manager.num_free_blocks == driver.engine.block_manager.num_blocks


def test_the_engine_is_not_idle_while_an_answer_is_generated(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama)
    feeder = feed(driver, Answer(PROMPT, 3))
    steps = 0
    while not feeder.computed:
        assert steps == 0 or not driver.engine.is_idle
        driver.step()
        steps += 1
    assert steps == 3
    assert driver.engine.is_idle


def test_an_answer_that_is_not_finite_fails_alone(llama: PreTrainedModel) -> None:
    with torch.no_grad():
        llama.model.embed_tokens.weight[13] = float("nan")
    driver = steered_driver(llama, block_size=4)
    healthy = request("healthy", [5, 6, 7], 12)
    expected = steered_driver(llama).run(healthy)["healthy", 0].token_ids
    broken, good = Answer([5, 6, 7, *[13] * 12], 12), Answer([5, 6, 7], 12)
    driver.add(healthy)
    feeder = feed(driver, broken, good)
    results = driver.run()
    assert feeder.failed == [broken]
    assert feeder.computed == [good]
    assert good.token_ids == results["healthy", 0].token_ids == expected
    assert driver.failures == {}
    after = Answer([5, 6, 7, 8, 9, 10, 11], 12)
    compute(driver, after)
    assert after.token_ids == expect(llama, after.prompt_token_ids, 12)


def test_an_answer_that_cannot_be_computed_fails_alone(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama)
    launch = driver.engine.runner.launch
    broken, good = Answer([5, 6, 7], 12, steering=steering(CONCEPTS["rude"], 1.0)), Answer([5, 6, 7], 12)

    def fail(scheduled: list[Sequence]) -> Step:
        if any(sequence.answer is broken and sequence.num_output_tokens == 5 for sequence in scheduled):
            raise RuntimeError("the device is on fire")
        return launch(scheduled)

    driver.engine.runner.launch = fail
    driver.add(request("healthy", [5, 6, 7], 12))
    feeder = feed(driver, broken, good)
    results = driver.run()
    assert feeder.failed == [broken]
    assert feeder.computed == [good]
    assert good.token_ids == results["healthy", 0].token_ids == expect(llama, [5, 6, 7], 12)
    assert driver.failures == {}
    assert driver.engine.is_idle
    assert driver.engine.block_manager.num_free_blocks == driver.engine.block_manager.num_blocks


def test_an_answer_draws_no_random_numbers(llama: PreTrainedModel) -> None:
    """So that requests without a seed get the same tokens with and without trainings."""
    drawn = request("drawn", PROMPT, 12, temperature=1.0)
    alone = steered_driver(llama).run(drawn)["drawn", 0].token_ids
    driver = steered_driver(llama)
    compute(driver, Answer(PROMPT, 8))
    assert driver.run(drawn)["drawn", 0].token_ids == alone

"""In a mixed batch, each sequence gets its own steering and nothing of its neighbours' steering."""

from itertools import permutations

import msgspec
import pytest
from transformers import PreTrainedModel

from inference.interface.protocol import GenerationRequest, RefusalCode, SteeringSpec, SubmitResult
from inference.runner.model_runner import Step
from inference.scheduling.sequence import Sequence
from tests.inference.conftest import ARCHITECTURES, Result, make_model, request
from tests.inference.recorder import Recorder
from tests.inference.steering.conftest import CONCEPTS, random_tokens, steered, steered_driver


def run_alone(model: PreTrainedModel, one: GenerationRequest, **config: object) -> list[int]:
    return steered_driver(model, **config).run(one)[one.request_id, 0].token_ids


def many_configurations() -> list[GenerationRequest]:
    """Several sets of concepts with several strengths, and requests without concepts, all with one prompt."""
    prompt = random_tokens(1, 20)
    sets = [("kind",), ("rude",), ("terse",), ("kind", "rude"), ("kind", "rude", "terse")]
    specs = [SteeringSpec(names, strength) for names in sets for strength in (-1.5, -0.3, 0.4, 1.0)]
    return [
        msgspec.structs.replace(request(f"r{i}", prompt, 12, nice=i % 4 == 3), steering=spec)
        for i, spec in enumerate([*specs, None, None])
    ]


def test_a_mixed_batch_steers_each_request_as_if_it_ran_alone(llama: PreTrainedModel) -> None:
    requests = many_configurations()
    expected = [run_alone(llama, one) for one in requests]
    assert len(set(map(tuple, expected))) > 15, "the outputs are too similar for this test"
    results = steered_driver(llama).run(*requests)
    assert [results[one.request_id, 0].token_ids for one in requests] == expected


# The number of rows of an expert's tensor depends on the whole batch, and so do the last bits of its output.
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES.keys() - {"qwen3_moe"}))
def test_steered_neighbours_change_no_bit_of_unsteered_requests(architecture: str) -> None:
    model = make_model(architecture)
    plain = [request(f"r{i}", random_tokens(i, 5 + 7 * i), 12, top_logprobs=3) for i in range(6)]
    mixed = [
        steered(one, *list(CONCEPTS)[: 1 + i // 2], strength=2.0 - i) if i % 2 else one
        for i, one in enumerate(plain)
    ]

    def run(requests: list[GenerationRequest]) -> list[Result]:
        results = steered_driver(model, max_batch_tokens=16).run(*requests)
        return [results[one.request_id, 0] for one in requests]

    without, beside = run(plain), run(mixed)
    assert beside[::2] == without[::2]
    assert all(one != other for one, other in zip(beside[1::2], without[1::2], strict=True))


def test_neither_order_nor_repetition_of_concepts_changes_a_bit(llama: PreTrainedModel) -> None:
    steerer = steered_driver(llama, steering_blocks=(0, 2)).engine.steerer
    orders = [*permutations(CONCEPTS), ("kind", "kind", "rude", "terse", "kind")]
    steerings = {steerer.steer(SteeringSpec(names, 0.7), 1) for names in orders}
    assert len(steerings) == 1
    assert steerings != {steerer.steer(SteeringSpec(("kind", "rude"), 0.7), 1)}


@pytest.mark.parametrize("strength", [0.0, -0.0])
def test_strength_zero_changes_nothing(llama: PreTrainedModel, strength: float) -> None:
    plain = request("a", random_tokens(2, 40), 12, top_logprobs=3)
    zero = steered(plain, "kind", "rude", strength=strength)
    drivers = [steered_driver(make_model("llama")) for _ in range(2)]
    results = [driver.run(one)["a", 0] for driver, one in zip(drivers, (plain, zero), strict=True)]
    assert results[0] == results[1]
    bank = drivers[1].engine.runner.bank
    assert not bank.vectors.any()


def test_a_strength_without_concepts_gives_no_steering(llama: PreTrainedModel) -> None:
    steerer = steered_driver(llama).engine.steerer
    assert steerer.steer(SteeringSpec((), 1.0), 1) is None


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize(("names", "unknown"), [(("kind", "x", "y"), "x"), (("y",), "y")])
def test_a_request_with_an_unknown_concept_is_refused_and_takes_no_row(
    llama: PreTrainedModel, strength: float, names: tuple[str, ...], unknown: str
) -> None:
    driver = steered_driver(llama)
    refused = driver.engine.add(steered(request("a", [5, 6], 5), *names, strength=strength))
    assert refused == SubmitResult("a", RefusalCode.UNKNOWN_STEERING_CONCEPT, unknown)
    assert driver.engine.is_idle
    bank = driver.engine.runner.bank
    assert bank.num_free_rows == bank.vectors.shape[1] - 1


def test_all_choices_of_a_request_are_steered_alike(llama: PreTrainedModel) -> None:
    one = steered(request("a", random_tokens(3, 37), 12), "kind", strength=-1.0)
    expected = run_alone(llama, one)
    driver = steered_driver(llama, max_batch_tokens=16)
    results = driver.run(msgspec.structs.replace(one, n=4), request("other", random_tokens(4, 30), 12))
    assert [results["a", i].token_ids for i in range(4)] == [expected] * 4


def test_a_row_is_held_until_the_last_choice_has_ended(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama)
    bank = driver.engine.runner.bank
    before = bank.num_free_rows
    driver.engine.add(steered(request("a", [5, 6, 7], 20, n=3), "kind"))
    driver.step()
    driver.engine.abort("a", 1)
    driver.engine.abort("a", 0)
    assert bank.num_free_rows == before - 1
    driver.engine.abort("a")
    assert bank.num_free_rows == before


def test_there_is_a_row_for_every_sequence_that_can_wait_or_run(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, max_running=3, max_queued=4)
    bank = driver.engine.runner.bank
    before = bank.num_free_rows
    for i in range(7):
        one = steered(request(f"r{i}", [5, 6, i + 9], 8), "kind", strength=1 + i / 10)
        assert driver.engine.add(one).refusal is None
    refused = driver.engine.add(steered(request("late", [5], 8), "rude"))
    assert refused.refusal is RefusalCode.QUEUE_FULL
    assert all(len(result.token_ids) == 8 for result in driver.run().values())
    assert bank.num_free_rows == before


def test_a_refused_request_takes_no_row(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, context_length=10)
    bank = driver.engine.runner.bank
    before = bank.num_free_rows
    long = driver.engine.add(steered(request("long", [5] * 9, 9), "kind"))
    assert long.refusal is RefusalCode.CONTEXT_LENGTH_EXCEEDED
    broken = driver.engine.add(steered(request("broken", [-1], 9), "kind"))
    assert broken.refusal is RefusalCode.INTERNAL
    assert bank.num_free_rows == before


def test_a_failed_step_releases_its_rows(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, max_running=1)
    bank = driver.engine.runner.bank
    before = bank.num_free_rows
    for name in CONCEPTS:
        driver.engine.add(steered(request(name, [5, 6], 30, n=2), name))
    driver.step()
    assert bank.num_free_rows < before
    launch = driver.engine.runner.launch

    def fail(scheduled: list[Sequence]) -> Step:
        if any(sequence.request_id == "rude" for sequence in scheduled):
            raise RuntimeError("the device is on fire")
        return launch(scheduled)

    driver.engine.runner.launch = fail
    assert {name for name, _ in driver.run()} == {"kind", "terse"}
    assert bank.num_free_rows == before


def test_captured_steps_steer_each_request_as_if_it_ran_alone(llama: PreTrainedModel) -> None:
    requests = many_configurations()
    expected = [run_alone(llama, one) for one in requests]
    recorder = Recorder()
    results = steered_driver(llama, capture=recorder).run(*requests)
    assert recorder.num_replayed > 0
    assert [results[one.request_id, 0].token_ids for one in requests] == expected

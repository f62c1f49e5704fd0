"""In a mixed batch, each sequence gets its own steering and nothing of its neighbours' steering."""

from collections.abc import Iterable
from itertools import permutations

import msgspec
import pytest
from transformers import PreTrainedModel

from inference.interface.requests import (
    GenerationRequest,
    RefusalCode,
    SteeringMode,
    SteeringSpec,
    SubmitResult,
)
from inference.runner import model_runner
from inference.runner.model_runner import ModelRunner, Step
from inference.scheduling.sequence import Sequence
from tests.inference.conftest import ARCHITECTURES, Result, make_model, request
from tests.inference.recorder import Recorder
from tests.inference.steering.conftest import CONCEPTS, concepts_at, random_tokens, steered, steered_driver


def run_alone(model: PreTrainedModel, one: GenerationRequest, **config: object) -> list[int]:
    return steered_driver(model, **config).run(one)[one.request_id, 0].token_ids


def many_configurations() -> list[GenerationRequest]:
    """Several sets of concepts with several strengths, and requests without concepts, all with one prompt."""
    prompt = random_tokens(1, 20)
    sets = [("kind",), ("rude",), ("terse",), ("kind", "rude"), ("kind", "rude", "terse")]
    strengths = (-1.5, -0.3, 0.4, 1.0)
    specs = [SteeringSpec(dict.fromkeys(names, strength)) for names in sets for strength in strengths]
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


def test_the_order_of_concepts_changes_no_bit(llama: PreTrainedModel) -> None:
    steerer = steered_driver(llama, concepts=concepts_at(0, 2)).engine.steerer
    strengths = {"kind": 0.7, "rude": -0.3, "terse": 1.1}

    def digest(names: Iterable[str], mode: SteeringMode) -> bytes:
        spec = SteeringSpec({name: strengths[name] for name in names}, mode=mode)
        steering = steerer.steer(spec, 1).steering
        assert steering is not None
        return steering.digest(1, 2)

    for mode in SteeringMode:
        assert len({digest(names, mode) for names in permutations(CONCEPTS)}) == 1
        assert digest(CONCEPTS, mode) != digest(("kind", "rude"), mode)


@pytest.mark.parametrize("strength", [0.0, -0.0])
def test_strength_zero_changes_nothing(llama: PreTrainedModel, strength: float) -> None:
    plain = request("a", random_tokens(2, 40), 12, top_logprobs=3)
    zero = steered(plain, "kind", "rude", strength=strength)
    drivers = [steered_driver(make_model("llama")) for _ in range(2)]
    results = [driver.run(one)["a", 0] for driver, one in zip(drivers, (plain, zero), strict=True)]
    assert results[0] == results[1]
    bank = drivers[1].engine.runner.bank
    assert not bank.vectors.any()


def test_no_concepts_give_no_steering(llama: PreTrainedModel) -> None:
    steerer = steered_driver(llama).engine.steerer
    assert steerer.steer(SteeringSpec({}), 1).steering is None


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize(("names", "unknown"), [(("kind", "x", "y"), "x"), (("y",), "y")])
def test_a_request_with_an_unknown_concept_is_refused(
    llama: PreTrainedModel, strength: float, names: tuple[str, ...], unknown: str
) -> None:
    driver = steered_driver(llama)
    refused = driver.engine.add(steered(request("a", [5, 6], 5), *names, strength=strength))
    assert refused == SubmitResult("a", RefusalCode.UNKNOWN_STEERING_CONCEPT, unknown)
    assert driver.engine.is_idle


def test_all_choices_of_a_request_are_steered_alike(llama: PreTrainedModel) -> None:
    one = steered(request("a", random_tokens(3, 37), 12), "kind", strength=-1.0)
    expected = run_alone(llama, one)
    driver = steered_driver(llama, max_batch_tokens=16)
    results = driver.run(msgspec.structs.replace(one, n=4), request("other", random_tokens(4, 30), 12))
    assert [results["a", i].token_ids for i in range(4)] == [expected] * 4


def test_every_sequence_that_can_wait_or_run_has_its_own_steering(llama: PreTrainedModel) -> None:
    requests = [
        steered(request(f"r{i}", [5, 6, i + 9], 8), "kind", strength=1 + i / 10, mode=SteeringMode.CLAMP)
        for i in range(7)
    ]
    expected = [run_alone(llama, one) for one in requests]
    driver = steered_driver(llama, max_running=3, max_queued=4)
    for one in requests:
        assert driver.engine.add(one).refusal is None
    refused = driver.engine.add(steered(request("late", [5], 8), "rude"))
    assert refused.refusal is RefusalCode.QUEUE_FULL
    results = driver.run()
    assert [results[one.request_id, 0].token_ids for one in requests] == expected


def test_a_refused_request_puts_nothing_into_the_bank(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, context_length=10)
    long = driver.engine.add(steered(request("long", [5] * 9, 9), "kind"))
    assert long.refusal is RefusalCode.CONTEXT_LENGTH_EXCEEDED
    broken = driver.engine.add(steered(request("broken", [-1], 9), "kind"))
    assert broken.refusal is RefusalCode.INTERNAL
    assert driver.engine.is_idle
    driver.run(request("plain", [5], 2))
    assert not driver.engine.runner.bank.vectors.any()


def test_a_failed_step_does_not_change_the_steering_of_others(llama: PreTrainedModel) -> None:
    requests = [steered(request(name, [5, 6], 30, n=2), name) for name in CONCEPTS]
    expected = {one.request_id: run_alone(llama, one) for one in requests}
    driver = steered_driver(llama, max_running=4)
    for one in requests:
        driver.engine.add(one)
    driver.step()
    launch = driver.engine.runner.launch

    def fail(scheduled: list[Sequence]) -> Step:
        if any(sequence.request_id == "rude" for sequence in scheduled):
            raise RuntimeError("the device is on fire")
        return launch(scheduled)

    driver.engine.runner.launch = fail
    results = driver.run()
    finished = {key: result.token_ids for key, result in results.items() if result.finish_reason}
    assert finished == {(name, i): expected[name] for name in ("kind", "terse") for i in range(2)}


def test_captured_steps_steer_each_request_as_if_it_ran_alone(llama: PreTrainedModel) -> None:
    requests = many_configurations()
    expected = [run_alone(llama, one) for one in requests]
    recorder = Recorder()
    results = steered_driver(llama, capture=recorder).run(*requests)
    assert recorder.num_replayed > 0
    assert [results[one.request_id, 0].token_ids for one in requests] == expected


@pytest.fixture
def numbers_of_parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of parts of each step that was launched."""
    numbers = []
    launch = ModelRunner.launch

    def recorded(self: ModelRunner, scheduled: list[Sequence]) -> Step:
        step = launch(self, scheduled)
        numbers.append(len(step.parts))
        return step

    monkeypatch.setattr(ModelRunner, "launch", recorded)
    return numbers


def all_modes() -> list[GenerationRequest]:
    """Each of them needs one to six rows of the bank."""
    prompt = random_tokens(1, 20)
    sets = [("kind",), ("rude", "terse"), ("kind", "rude", "terse")]
    cases = [(names, mode) for names in sets for mode in SteeringMode]
    requests = [
        steered(request(f"r{i}", prompt, 12), *names, strength=0.9 + i / 99, mode=mode)
        for i, (names, mode) in enumerate(cases)
    ]
    plain = [request("plain", prompt, 12), request("long", random_tokens(2, 60), 12)]
    reading = [msgspec.structs.replace(request("read", prompt, 12), readings=tuple(CONCEPTS))]
    return [*requests, *plain, *reading]


@pytest.mark.parametrize("num_rows", [7, 10])
@pytest.mark.parametrize("options", [{}, {"max_batch_tokens": 16}, {"num_blocks": 14}], ids=str)
def test_a_batch_that_needs_more_rows_than_the_bank_has_gives_the_same_output(
    llama: PreTrainedModel,
    num_rows: int,
    options: dict[str, int],
    numbers_of_parts: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = all_modes()
    expected = [run_alone(llama, one) for one in requests]
    assert len(set(map(tuple, expected))) > 9, "the outputs are too similar for this test"
    assert set(numbers_of_parts) == {1}
    monkeypatch.setattr(model_runner, "_SPARE_ROWS", num_rows - 12)
    driver = steered_driver(llama, max_running=12, **options)
    assert driver.engine.runner.bank.num_rows == num_rows
    results = driver.run(*requests)
    assert [results[one.request_id, 0].token_ids for one in requests] == expected
    assert max(numbers_of_parts) > 1


def test_captured_steps_go_on_if_a_batch_needs_more_rows_than_the_bank_has(
    llama: PreTrainedModel, numbers_of_parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = many_configurations()
    expected = [run_alone(llama, one) for one in requests]
    numbers_of_parts.clear()
    monkeypatch.setattr(model_runner, "_SPARE_ROWS", 5 - 24)
    recorder = Recorder()
    results = steered_driver(llama, capture=recorder, max_running=24).run(*requests)
    assert [results[one.request_id, 0].token_ids for one in requests] == expected
    assert max(numbers_of_parts) == 4  # 20 configurations, 5 rows
    assert recorder.num_replayed >= 4 * 11


def test_a_request_that_needs_more_rows_than_the_bank_has_fails_alone(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bank of a real engine has more rows than the gateway lets a request need."""
    monkeypatch.setattr(model_runner, "_SPARE_ROWS", 2 - 8)
    plain, simple = request("plain", [5, 6], 12), steered(request("simple", [5, 6], 12), "kind")
    expected = [run_alone(llama, one) for one in (plain, simple)]
    driver = steered_driver(llama, max_running=8)
    for one in (plain, steered(request("large", [5, 6], 12), *CONCEPTS, mode=SteeringMode.CLAMP), simple):
        driver.engine.add(one)
    failures = []
    while not driver.engine.is_idle:
        failures += driver.step().failures
    assert [failure.request_id for failure in failures] == ["large"]
    assert [driver.results[one.request_id, 0].token_ids for one in (plain, simple)] == expected

"""Tests steps that fail: which requests end, which go on unchanged, and when the engine gives up."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import PreTrainedModel

from inference.compute.batch import BatchBuilder
from inference.compute.sampler import Sampled, Sampler
from inference.interface.requests import GenerationRequest
from inference.runner.model_runner import ModelRunner, Step
from inference.runner.recovery import BrokenEngineError
from inference.scheduling.sequence import Sequence
from tests.inference.conftest import Driver, build_driver, request
from tests.inference.recorder import Recorder

Fault = Callable[[list[Sequence]], Exception | None]


def break_steps(driver: Driver, fault: Fault) -> list[int]:
    """Makes launches raise the error that `fault` returns, after the computation.

    Returns a list to which each launch adds the number of its sequences.
    """
    sizes: list[int] = []
    launch = driver.engine.runner.launch

    def launch_and_fail(scheduled: list[Sequence]) -> Step:
        sizes.append(len(scheduled))
        step = launch(scheduled)
        if error := fault(scheduled):
            raise error
        return step

    driver.engine.runner.launch = launch_and_fail
    return sizes


def poison(*request_ids: str) -> Fault:
    def fault(scheduled: list[Sequence]) -> Exception | None:
        poisoned = any(sequence.request_id in request_ids for sequence in scheduled)
        return RuntimeError("an operation failed") if poisoned else None

    return fault


def mixed_requests(count: int = 12, top_logprobs: int | None = 2) -> list[GenerationRequest]:
    """Requests with long and short prompts, one or two choices, greedy and random sampling."""
    return [
        request(
            f"r{i}",
            [3 + i, 4 + i] * (1 + 7 * (i % 4)),
            20,
            n=1 + i % 2,
            temperature=i % 3 / 2,
            top_logprobs=top_logprobs,
        )
        for i in range(count)
    ]


def run_to_the_end(driver: Driver, requests: list[GenerationRequest]) -> list[str]:
    """Runs the requests until the engine is idle. Returns the ids of the requests that failed."""
    for one in requests:
        assert driver.engine.add(one).refusal is None
    failed = []
    while not driver.engine.is_idle:
        failed += [failure.request_id for failure in driver.step().failures]
    assert driver.engine.block_manager.num_free_blocks == driver.engine.block_manager.num_blocks
    return failed


def outputs(driver: Driver, without: tuple[str, ...] = ()) -> dict[tuple[str, int], object]:
    return {
        key: [(event.token_id, event.finish_reason) for event in result.events]
        for key, result in driver.results.items()
        if key[0] not in without
    }


@pytest.fixture
def undisturbed(llama: PreTrainedModel) -> dict[tuple[str, int], object]:
    driver = build_driver(llama, max_batch_tokens=48, block_size=4)
    assert run_to_the_end(driver, mixed_requests()) == []
    return outputs(driver)


@pytest.mark.parametrize("poisonous", [("r0",), ("r7",), ("r11",), ("r3", "r8")])
def test_a_request_that_cannot_be_computed_fails_alone_and_does_not_change_the_others(
    llama: PreTrainedModel, undisturbed: dict[tuple[str, int], object], poisonous: tuple[str, ...]
) -> None:
    driver = build_driver(llama, max_batch_tokens=48, block_size=4)
    break_steps(driver, poison(*poisonous))
    assert sorted(run_to_the_end(driver, mixed_requests())) == sorted(poisonous)
    expected = {key: value for key, value in undisturbed.items() if key[0] not in poisonous}
    assert outputs(driver, without=poisonous) == expected


def test_a_request_that_breaks_while_it_runs_fails_then(
    llama: PreTrainedModel, undisturbed: dict[tuple[str, int], object]
) -> None:
    driver = build_driver(llama, max_batch_tokens=48, block_size=4)
    for one in mixed_requests():
        driver.engine.add(one)
    for _ in range(12):
        driver.step()
    break_steps(driver, poison("r5"))
    assert run_to_the_end(driver, []) == ["r5"]
    assert outputs(driver, without=("r5",)) == {k: v for k, v in undisturbed.items() if k[0] != "r5"}
    partial = driver.results["r5", 0].events
    assert 0 < len(partial) < 20
    assert partial[-1].finish_reason is None


def test_a_batch_that_needs_too_much_memory_is_computed_in_parts(
    llama: PreTrainedModel, undisturbed: dict[tuple[str, int], object]
) -> None:
    driver = build_driver(llama, max_batch_tokens=48, block_size=4)
    sizes = break_steps(
        driver, lambda scheduled: torch.OutOfMemoryError("out of memory") if len(scheduled) > 3 else None
    )
    assert run_to_the_end(driver, mixed_requests()) == []
    assert outputs(driver) == undisturbed
    assert max(sizes) > 3


def test_a_temporary_fault_does_not_change_the_output(
    llama: PreTrainedModel, undisturbed: dict[tuple[str, int], object]
) -> None:
    driver = build_driver(llama, max_batch_tokens=48, block_size=4)
    attempts: Iterator[bool] = iter([True, False, False] * 1000)
    break_steps(
        driver, lambda scheduled: RuntimeError("fault") if len(scheduled) > 1 and next(attempts) else None
    )
    assert run_to_the_end(driver, mixed_requests()) == []
    assert outputs(driver) == undisturbed


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (BatchBuilder, "build"),
        (BatchBuilder, "follow"),
        (Sampler, "prepare"),
        (Sampler, "sample"),
        (Sampled, "read"),
        (ModelRunner, "launch_after"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_temporary_fault_anywhere_in_a_step_does_not_change_the_output(
    llama: PreTrainedModel,
    undisturbed: dict[tuple[str, int], object],
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
) -> None:
    """Without log probabilities, so that steps are launched ahead too."""
    driver = build_driver(llama, capture=Recorder(), max_batch_tokens=48, block_size=4)
    act, calls = getattr(owner, method), itertools.count(1)
    faults = 0

    def fail_now_and_then(*arguments: object, **options: object) -> object:
        nonlocal faults
        result = act(*arguments, **options)
        if next(calls) % 7 == 0:
            faults += 1
            raise RuntimeError("a bug")
        return result

    monkeypatch.setattr(owner, method, fail_now_and_then)
    assert run_to_the_end(driver, mixed_requests(top_logprobs=None)) == []
    assert faults
    assert outputs(driver) == undisturbed


def test_blocks_of_a_failed_request_are_not_reused(llama: PreTrainedModel) -> None:
    alone = build_driver(llama).run(request("late", [9] * 40, 8))["late", 0].token_ids
    driver = build_driver(llama)
    sizes = break_steps(driver, poison("bad"))
    assert run_to_the_end(driver, [request("bad", [9] * 40, 8)]) == ["bad"]
    assert sizes == [1]
    with torch.no_grad():  # an operation that failed may have left such values
        for keys in driver.engine.runner._cache.keys:
            keys[: driver.engine.runner._cache.padding_slot] = float("nan")
    assert driver.run(request("late", [9] * 40, 8))["late", 0].token_ids == alone


def test_one_bad_request_among_many_is_found_in_few_attempts(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=256, max_running=128)
    sizes = break_steps(driver, poison("r100"))
    for i in range(128):
        driver.engine.add(request(f"r{i}", [5, 6], 2))
    assert [failure.request_id for failure in driver.step().failures] == ["r100"]
    assert len(sizes) <= 2 * 7 + 1


def test_the_number_of_attempts_is_limited_if_most_requests_are_bad(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=512, max_running=200)
    sizes = break_steps(driver, poison(*(f"r{i}" for i in range(1, 200))))
    requests = [request(f"r{i}", [5, 6], 2) for i in range(200)]
    assert set(run_to_the_end(driver, requests)) == {f"r{i}" for i in range(1, 200)}
    assert len(driver.results["r0", 0].token_ids) == 2
    assert len(sizes) < 60


def test_three_steps_in_a_row_that_compute_nothing_break_the_engine(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    break_steps(driver, lambda scheduled: RuntimeError("always"))
    for i in range(2):
        assert run_to_the_end(driver, [request(f"r{i}", [5], 5)]) == [f"r{i}"]
    driver.engine.add(request("last", [5], 5))
    with pytest.raises(BrokenEngineError):
        driver.engine.step()


def test_a_successful_step_resets_the_count_of_lost_steps(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    break_steps(driver, poison(*(f"bad{i}" for i in range(6))))
    for i in range(6):
        failed = run_to_the_end(driver, [request(f"bad{i}", [5], 5), request(f"good{i}", [5], 2)])
        assert failed == [f"bad{i}"]
    assert all(len(driver.results[f"good{i}", 0].token_ids) == 2 for i in range(6))


def test_a_step_on_a_lost_device_is_not_repeated(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    sizes = break_steps(driver, lambda scheduled: torch.AcceleratorError("CUDA error: device-side assert"))
    driver.engine.add(request("a", [5], 5, n=2))
    with pytest.raises(torch.AcceleratorError):
        driver.engine.step()
    assert sizes == [1]


def test_the_log_names_the_request_that_failed(
    llama: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    driver = build_driver(llama)
    break_steps(driver, poison("bad"))
    run_to_the_end(driver, [request("good", [5], 2), request("bad", [5], 2)])
    [error] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "bad" in error.message
    assert "good" not in error.message
    assert error.exc_info is not None

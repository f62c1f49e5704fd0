"""Trainings that refine directions, in the engine: beside requests, interrupted, and with errors."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from inference.interface.concepts import TrainingState, TrainingUpdate
from inference.interface.config import ConfigError, EngineConfig
from inference.runner import recovery
from inference.runner.loading import check_group
from inference.scheduling.probe import Derivative
from inference.scheduling.steering import BlockVectors
from tests.inference.conftest import Driver, build_driver, make_model, request
from tests.inference.steering.conftest import make_training, random_tokens, steered, train
from tests.inference.steering.test_trainer import (
    check_alike,
    check_nothing_is_left,
    check_running_requests,
    make_expressive_model,
    running_requests,
    states,
)

TRAINING, MEASURING = TrainingState.TRAINING, TrainingState.MEASURING
READY = TrainingState.READY


def refining_driver(model: PreTrainedModel, **config: object) -> Driver:
    return build_driver(model, refine_directions=True, **config)


def count_derivatives(driver: Driver) -> list[Derivative]:
    """A list that gets all derivatives that are computed from now on."""
    computed: list[Derivative] = []
    complete = driver.engine.measuring.complete_derivative

    def complete_and_count(derivative: Derivative, fault: str | None) -> None:
        computed.append(derivative)
        complete(derivative, fault)

    driver.engine.measuring.complete_derivative = complete_and_count
    return computed


@pytest.mark.parametrize("quantization", ["none", "integer"])
def test_a_refined_direction_moves_held_out_texts(quantization: str) -> None:
    driver = refining_driver(make_expressive_model(), quantization=quantization, steering_blocks=(0, 1))
    computed = count_derivatives(driver)
    updates = train(driver, make_training(count=16, seed=3))
    assert states(updates) == [TRAINING, MEASURING, READY]
    progress = [update.progress for update in updates]
    assert progress == sorted(progress)
    report = updates[-1].report
    assert report is not None
    shifts = {effect.strength: effect.shift for effect in report.effects}
    assert shifts[1] > 0.5, report.summary
    assert shifts[-1] < -0.5, report.summary
    assert report.spearman == 1
    assert computed
    direction = driver.engine.steerer.get("kind")
    assert direction.reading_block not in direction.steered(1.0)
    check_nothing_is_left(driver)


def test_shuffled_labels_do_not_work() -> None:
    """Gradients fit the pairs that they see. The report is about pairs that they do not see."""
    driver = refining_driver(make_expressive_model(), steering_blocks=(0, 1))
    right = make_training(count=16, seed=3)
    pairs = list(zip(right.positive, right.negative, strict=True))
    swapped = [pair[::-1] if number % 4 < 2 else pair for number, pair in enumerate(pairs)]
    positive, negative = (list(side) for side in zip(*swapped, strict=True))
    shuffled = msgspec.structs.replace(right, positive=positive, negative=negative)
    report = train(driver, shuffled)[-1].report
    assert report is not None
    assert report.works is False
    assert abs(next(effect.shift for effect in report.effects if effect.strength == 1)) < 0.25


def test_training_does_not_change_running_requests(llama: PreTrainedModel) -> None:
    driver = refining_driver(llama)
    for one in running_requests():
        driver.engine.add(one)
    driver.engine.trainer.add(make_training())
    driver.run()
    check_running_requests(driver)
    check_nothing_is_left(driver)


def test_running_requests_do_not_change_training() -> None:
    found = []
    for busy in (False, True):
        driver = refining_driver(make_model("llama"), max_batch_tokens=48)
        driver.engine.trainer.add(make_training())
        number = 0
        while not driver.engine.trainer.is_idle:
            if busy and number % 3 == 0:
                driver.engine.add(request(f"r{number}", random_tokens(number, 30), 8))
            number += 1
            driver.step()
        driver.run()
        found.append(driver.engine.steerer.get("kind"))
    check_alike(*found)


def test_requests_name_the_concept_and_read_it(llama: PreTrainedModel) -> None:
    driver = refining_driver(llama)
    train(driver, make_training())
    results = driver.run(steered(request("a", [5, 6, 7], 8), "kind"), request("b", [5, 6, 7], 8))
    assert results["a", 0].token_ids != results["b", 0].token_ids


def fail(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def differentiate(*args: object) -> None:
        raise error

    monkeypatch.setattr(recovery, "differentiate", differentiate)


def test_a_model_that_cannot_be_differentiated_keeps_the_mean_differences(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = build_driver(llama)
    expected = train(plain, make_training())[-1].report
    driver = refining_driver(llama)
    fail(RuntimeError("out of memory:\n 12 GiB"), monkeypatch)
    for one in running_requests():
        driver.engine.add(one)
    updates = train(driver, make_training())
    assert states(updates) == [TRAINING, MEASURING, READY]
    report = updates[-1].report
    assert report is not None
    warning = "its direction was not refined: RuntimeError: out of memory: 12 GiB"
    assert report.warnings == [*expected.warnings, warning]
    assert msgspec.structs.replace(report, warnings=expected.warnings) == expected
    check_alike(driver.engine.steerer.get("kind"), plain.engine.steerer.get("kind"))
    check_running_requests(driver)
    check_nothing_is_left(driver)


def test_a_broken_device_ends_the_engine(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = refining_driver(llama)
    fail(torch.AcceleratorError("the device is lost", 1), monkeypatch)
    with pytest.raises(torch.AcceleratorError):
        train(driver, make_training())


def test_derivatives_that_are_not_finite_leave_the_mean_differences(
    llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differentiate(model: object, derivative: Derivative) -> None:
        derivative.logprobs = np.zeros(len(derivative.texts))
        derivative.gradients = np.full((len(derivative.texts), *derivative.added.vectors.shape), np.nan)

    monkeypatch.setattr(recovery, "differentiate", differentiate)
    report = train(refining_driver(llama), make_training())[-1].report
    assert report is not None
    assert report.warnings[-1] == "its direction was not refined: the derivatives are not finite"


@pytest.mark.parametrize("derivatives_before", [1, 5, 60])
def test_a_forgotten_training_gives_no_more_updates(llama: PreTrainedModel, derivatives_before: int) -> None:
    driver = refining_driver(llama)
    computed = count_derivatives(driver)
    driver.engine.trainer.add(make_training())
    while len(computed) < derivatives_before:
        driver.step()
    driver.engine.trainer.forget("kind")
    assert train(driver) == []
    check_nothing_is_left(driver)
    assert states(train(driver, make_training())) == [TRAINING, MEASURING, READY]


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def derivative() -> Derivative:
    return Derivative([([5], [6])], BlockVectors((0,), np.zeros((1, 32), np.float32)))


def test_requests_get_half_of_the_time(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = refining_driver(llama)
    measuring, clock = driver.engine.measuring, Clock()
    monkeypatch.setattr(driver.engine.scheduler, "clock", clock)
    done: list[Derivative] = []
    monkeypatch.setattr(measuring.trainer, "complete", done.append)
    queued = [derivative() for _ in range(3)]
    measuring._add(queued)
    assert measuring.next_derivative(serving=True) is queued[0]
    clock.now += 2
    measuring.complete_derivative(queued[0], None)
    clock.now += 1.9
    assert measuring.next_derivative(serving=True) is None
    clock.now += 0.2
    assert measuring.next_derivative(serving=True) is queued[1]
    clock.now += 2
    measuring.complete_derivative(queued[1], None)
    assert measuring.next_derivative(serving=False) is queued[2]  # nobody waits
    assert measuring.next_derivative(serving=False) is None
    assert done == queued[:2]


def test_a_model_without_a_block_to_read_keeps_the_mean_differences(llama: PreTrainedModel) -> None:
    driver = refining_driver(llama, steering_blocks=(0, 1, 2))
    computed = count_derivatives(driver)
    updates: list[TrainingUpdate] = train(driver, make_training())
    assert states(updates)[-1] is READY
    assert not computed


def test_several_devices_refuse_to_refine(tmp_path: Path) -> None:
    config = EngineConfig(tensor_parallel=2, refine_directions=True)
    with pytest.raises(
        ConfigError, match=r"steering.refine and engine.tensor_parallel cannot be used together"
    ):
        check_group(config, tmp_path)

"""The driver: runs an engine in the process of the caller."""

import signal
import threading
from collections.abc import Callable
from unittest.mock import patch

import pytest
from transformers import PreTrainedModel

from inference.driver import Driver, DriverError, RefusedError
from inference.interface.concepts import ExportVectors, ReadTexts, TrainingState
from inference.interface.requests import FinishReason, RefusalCode
from inference.runner.recovery import BrokenEngineError
from tests.inference.conftest import build_driver, generate, request
from tests.inference.steering.conftest import PROMPT, make_training

TEXT = [7, 8, 9]


def test_each_choice_has_the_events_of_its_tokens(llama: PreTrainedModel) -> None:
    results = build_driver(llama).run(request("a", TEXT, 5), request("b", [3, 4], 3, n=2))
    assert results["a", 0].token_ids == generate(llama, TEXT, 5)
    assert [event.token_id for event in results["a", 0].events] == results["a", 0].token_ids
    assert results["b", 0].token_ids == results["b", 1].token_ids == generate(llama, [3, 4], 3)
    assert {result.finish_reason for result in results.values()} == {FinishReason.LENGTH}


def test_a_refused_request_raises_the_refusal(llama: PreTrainedModel) -> None:
    with pytest.raises(RefusedError, match="CONTEXT_LENGTH_EXCEEDED") as caught:
        build_driver(llama).run(request("a", TEXT, 1000))
    assert caught.value.result.refusal is RefusalCode.CONTEXT_LENGTH_EXCEEDED


def test_what_never_happens_is_not_awaited_for_ever(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    driver.add(request("a", TEXT, 3))
    with pytest.raises(DriverError, match="idle too early"):
        driver.run_until(lambda: False)
    endless = Driver(driver.engine, max_steps=5)
    endless.add(request("b", TEXT, 100))
    with pytest.raises(DriverError, match="not finished within 5 steps"):
        endless.run_until(lambda: False)


def test_a_discarded_request_leaves_nothing(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    first, other = request("a", TEXT, 100, n=2), request("b", TEXT, 3)
    driver.add(first)
    driver.step()
    driver.discard(first)
    assert (driver.results, driver.engine.is_idle) == ({}, True)
    assert driver.run(other).keys() == {("b", 0)}


def test_an_abort_during_a_step_takes_effect_after_it(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    first, other = request("a", TEXT, 100), request("b", TEXT, 3)
    driver.add(first)
    apply = driver.engine._apply

    def discard_in_between(*arguments: object) -> object:
        driver.discard(first)  # as the finalizer of an object does, in the thread that steps
        return apply(*arguments)

    with patch.object(driver.engine, "_apply", discard_in_between):
        driver.step()
    assert driver.run(other).keys() == {("b", 0)}


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_the_step_whole(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    driver.add(request("a", TEXT, 5))
    apply = driver.engine._apply

    def interrupt_in_between(*arguments: object) -> object:
        signal.raise_signal(signal.SIGINT)
        return apply(*arguments)

    with patch.object(driver.engine, "_apply", interrupt_in_between), pytest.raises(KeyboardInterrupt):
        driver.run_until(lambda: False)
    assert len(driver.results["a", 0].token_ids) == 1
    assert driver.run()["a", 0].token_ids == generate(llama, TEXT, 5)


def test_a_broken_engine_is_not_used_again(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    driver.add(request("a", TEXT, 5))
    with (
        patch.object(driver.engine, "_apply", side_effect=BrokenEngineError),
        pytest.raises(BrokenEngineError),
    ):
        driver.step()
    with pytest.raises(DriverError, match="has failed before"):
        driver.step()


def test_a_concept_is_trained_exported_and_read(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    updates = []
    last = driver.train(make_training("kind"), updates.append)
    assert (last.state, updates[-1]) == (TrainingState.READY, last)
    assert [update.progress for update in updates] == sorted(update.progress for update in updates)
    exported = driver.export(ExportVectors("e", "kind"))
    assert exported.vectors is not None
    assert exported.report == last.report
    read = driver.read(ReadTexts("r", "kind", [PROMPT, PROMPT], [TEXT, [5]]))
    assert read.readings is not None
    assert list(map(len, read.readings)) == [3, 1]
    assert driver.engine.is_idle


def test_what_the_engine_does_not_know_has_no_vectors_and_no_readings(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    assert driver.export(ExportVectors("e", "kind")).vectors is None
    assert driver.read(ReadTexts("r", "kind", [PROMPT], [TEXT])).readings is None


def test_an_interrupted_training_is_dropped(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)

    def stop(update: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        driver.train(make_training("kind"), stop)
    driver.run()
    assert not driver.engine.trainer.knows("kind")
    assert driver.train(make_training("kind")).state is TrainingState.READY


def test_an_interrupted_reading_is_dropped(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=4)
    driver.train(make_training("kind"))
    step, driver.engine.step = driver.engine.step, lambda: interrupt(step)
    with pytest.raises(KeyboardInterrupt):
        driver.read(ReadTexts("r", "kind", [PROMPT], [TEXT * 5]))
    driver.engine.step = step
    assert driver.engine.is_idle
    driver.engine.check_integrity()


def interrupt(step: Callable[[], object]) -> None:
    step()
    raise KeyboardInterrupt


def test_waiting_threads_share_the_steps(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    requests = [request(str(number), TEXT, 20) for number in range(4)]

    def wait_for(request_id: str) -> None:
        driver.run_until(lambda: (result := driver.results.get((request_id, 0))) and result.finish_reason)

    for each in requests:
        driver.add(each)
    threads = [threading.Thread(target=wait_for, args=[each.request_id]) for each in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert driver.num_steps <= 22
    assert [result.token_ids for result in driver.results.values()] == [generate(llama, TEXT, 20)] * 4

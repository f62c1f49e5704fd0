"""Captured steps, and steps launched before the previous step's result is known, do not change the output."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from inference.compute.graphs import batch_sizes
from inference.interface.requests import GenerationRequest
from inference.runner.model_runner import ModelRunner
from tests.inference.conftest import (
    ARCHITECTURES,
    Driver,
    Result,
    assert_results_close,
    build_driver,
    generate,
    make_model,
    request,
)
from tests.inference.recorder import Recorder
from tests.inference.test_exactness import random_prompt


@pytest.fixture
def launched_ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of sequences in each step that was launched ahead."""
    sizes = []
    launch_after = ModelRunner.launch_after

    def recorded(self: ModelRunner, step: Any) -> Any:
        sizes.append(len(step.sequences))
        return launch_after(self, step)

    monkeypatch.setattr(ModelRunner, "launch_after", recorded)
    return sizes


def run(model: PreTrainedModel, requests: list[GenerationRequest], **options: object) -> list[Result]:
    results = build_driver(model, **options).run(*requests)
    return [results[one.request_id, index] for one in requests for index in range(one.n)]


def mixed_requests() -> list[GenerationRequest]:
    return [
        request("greedy", random_prompt(1, 30), 40),
        request("one token", [7], 21),
        request("drawn", random_prompt(2, 5), 33, temperature=1.0, top_p=0.9),
        request("penalised", random_prompt(3, 9), 18, frequency_penalty=0.7, presence_penalty=0.2),
        request("logprobs", random_prompt(4, 50), 12, top_logprobs=2),
        request("biased", random_prompt(5, 17), 29, temperature=0.8, logit_bias={9: 5.0, 1: -100.0}),
        request("stops", random_prompt(6, 3), 40, stop_token_ids=tuple(range(0, 199, 9))),
        request("twice", random_prompt(7, 20), 25, n=2, temperature=1.2),
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_generate(architecture: str, launched_ahead: list[int]) -> None:
    model = make_model(architecture)
    prompts = [random_prompt(i, length) for i, length in enumerate([1, 5, 40])]
    expected = [generate(model, prompt, 24) for prompt in prompts]
    recorder = Recorder()
    results = run(model, [request(f"r{i}", p, 24) for i, p in enumerate(prompts)], capture=recorder)
    assert [result.token_ids for result in results] == expected
    if architecture == "qwen3_moe" and model.device.type == "cuda":
        return  # For experts in float32, torch's grouped_mm waits for the device, so nothing is captured.
    assert recorder.num_replayed >= 23
    assert len(launched_ahead) > 15


@pytest.mark.parametrize("max_batch_tokens", [8, 64])
def test_captured_steps_do_not_change_mixed_batches(
    llama: PreTrainedModel, max_batch_tokens: int, launched_ahead: list[int]
) -> None:
    options = {"max_batch_tokens": max_batch_tokens, "num_blocks": 64}
    without = run(llama, mixed_requests(), eager=True, **options)
    recorder = Recorder()
    captured = run(llama, mixed_requests(), capture=recorder, **options)
    assert [result.token_ids for result in captured] == [result.token_ids for result in without]
    if llama.device.type == "cpu":  # A GPU may compute a padded batch in another order.
        assert_results_close(captured, without)
    assert recorder.num_replayed > 20
    assert launched_ahead


def test_no_step_is_launched_ahead_while_a_new_prompt_waits(
    llama: PreTrainedModel, launched_ahead: list[int]
) -> None:
    driver = build_driver(llama, capture=Recorder())
    driver.engine.add(request("a", random_prompt(0, 5), 50))
    for _ in range(4):
        driver.step()
    assert launched_ahead == [1, 1, 1]
    driver.engine.add(request("b", random_prompt(1, 5), 50))
    driver.step()  # the step that was launched ahead
    driver.step()  # prefills the new prompt
    assert launched_ahead == [1, 1, 1]
    driver.step()
    assert launched_ahead == [1, 1, 1, 2]


def test_an_aborted_sequence_in_a_step_launched_ahead_is_discarded(
    llama: PreTrainedModel, launched_ahead: list[int]
) -> None:
    requests = [request(f"r{i}", random_prompt(i, 6 + i), 40) for i in range(3)]
    expected = [generate(llama, one.prompt_token_ids, 40) for one in requests]
    driver = build_driver(llama, capture=Recorder())
    for one in requests:
        driver.engine.add(one)
    while len(launched_ahead) < 5:
        driver.step()
    driver.engine.abort("r1")
    driver.engine.check_integrity()
    results = driver.run(request("late", random_prompt(1, 7), 40))
    assert [results[key, 0].token_ids for key in ("r0", "late", "r2")] == expected


def test_all_sequences_of_a_step_launched_ahead_can_be_aborted(
    llama: PreTrainedModel, launched_ahead: list[int]
) -> None:
    driver = build_driver(llama, capture=Recorder())
    driver.engine.add(request("a", random_prompt(0, 5), 50))
    while not launched_ahead:
        driver.step()
    driver.engine.abort("a")
    assert driver.engine.is_idle
    expected = generate(llama, random_prompt(1, 5), 20)
    assert driver.run(request("b", random_prompt(1, 5), 20))["b", 0].token_ids == expected


def test_preemption_with_captured_steps_does_not_change_the_output(llama: PreTrainedModel) -> None:
    requests = [request(f"r{i}", random_prompt(i, 10), 60, temperature=1.0) for i in range(4)]
    options = {"block_size": 4, "num_blocks": 40}
    without = run(llama, requests, **options)
    driver: Driver = build_driver(llama, capture=Recorder(), **options)
    results = driver.run(*requests)
    assert driver.engine.scheduler.num_preemptions > 0
    assert [results[one.request_id, 0] for one in requests] == without


def test_batch_sizes_to_capture() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(3) == [1, 2, 3]
    assert batch_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert batch_sizes(24) == [1, 2, 4, 8, 16, 24]


def test_steps_are_captured_once(llama: PreTrainedModel) -> None:
    recorder = Recorder()
    driver = build_driver(llama, capture=recorder, max_running=20)
    assert recorder.num_captured == len(batch_sizes(20))
    driver.run(*(request(f"r{i}", random_prompt(i, 5), 9) for i in range(20)))
    assert recorder.num_captured == len(batch_sizes(20))


def test_a_model_that_cannot_be_captured_is_served_without_capture(
    llama: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(acts: object) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    expected = generate(llama, random_prompt(0, 5), 9)
    driver = build_driver(llama, capture=refuse)
    assert driver.run(request("a", random_prompt(0, 5), 9))["a", 0].token_ids == expected
    assert "cannot be captured" in caplog.text


@pytest.mark.skipif(torch.get_default_device().type == "cuda", reason="CUDA has its own error messages")
@pytest.mark.parametrize(
    "act",
    [
        lambda: torch.zeros(torch.ones(1).long().item()),
        lambda: torch.ones(2)[torch.ones(2) > 0],
        lambda: torch.tensor([1.0]),
    ],
    ids=["reads a value", "size depends on values", "copies a value"],
)
def test_the_recorder_refuses_what_a_gpu_cannot_capture(act: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(RuntimeError, match="is not permitted while a step is captured"):
        list(Recorder()([act]))

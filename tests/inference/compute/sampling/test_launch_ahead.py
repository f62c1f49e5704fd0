"""Steps that are launched ahead give the same tokens and log probabilities, whatever options requests use."""

from typing import Any

import pytest
from transformers import PreTrainedModel

from inference.interface.requests import GenerationRequest
from inference.runner.model_runner import ModelRunner, Step
from tests.inference.conftest import Result, build_driver, request
from tests.inference.recorder import Recorder
from tests.inference.test_exactness import random_prompt

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "penalties": [{"frequency_penalty": 0.7}, {"presence_penalty": 1.5}, {}],
    "random tokens": [{"frequency_penalty": 1.1, "presence_penalty": -0.3, "temperature": 1.3}] * 2,
    "log probabilities": [{"top_logprobs": 5}, {"top_logprobs": 0, "temperature": 1.0}, {"top_logprobs": 20}],
    "truncation": [
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.5, "top_k": 7},
        {"temperature": 0.7},
    ],
    "bias": [{"logit_bias": {5: 100.0, 9: 100.0, 17: 100.0}, "temperature": 1.0}, {"logit_bias": {3: 4.0}}],
    "all": [
        {
            "frequency_penalty": 0.7,
            "presence_penalty": 0.2,
            "top_logprobs": 3,
            "temperature": 1.0,
            "top_p": 0.9,
        },
        {
            "top_k": 12,
            "temperature": 1.2,
            "top_p": 0.95,
            "logit_bias": {4: 3.0, 1: -100.0},
            "top_logprobs": 1,
        },
        {"presence_penalty": 2.0, "logit_bias": {7: 100.0, 8: 100.0, 70: 100.0}, "frequency_penalty": -0.5},
        {},
    ],
}


@pytest.fixture
def launched_ahead(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    steps = []
    launch_after = ModelRunner.launch_after

    def recorded(self: ModelRunner, step: Step) -> Step:
        steps.append(launch_after(self, step))
        return steps[-1]

    monkeypatch.setattr(ModelRunner, "launch_after", recorded)
    return steps


def run(model: PreTrainedModel, requests: list[GenerationRequest], **options: Any) -> list[Result]:
    driver = build_driver(model, capture=Recorder(), **options)
    results = driver.run(*requests)
    return [results[one.request_id, index] for one in requests for index in range(one.n)]


@pytest.mark.parametrize("name", OPTIONS)
def test_launching_ahead_changes_nothing(
    llama: PreTrainedModel, name: str, launched_ahead: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    # All end with the same step, so that the batches are the same and so are the last bits of their numbers.
    requests = [
        request(f"r{i}", random_prompt(i, 5 + i), 28, n=1 + i % 2, **sampling)
        for i, sampling in enumerate(OPTIONS[name])
    ]
    ahead = run(llama, requests)
    num_ahead = len(launched_ahead)
    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "can_be_followed", lambda runner, step: False)
        one_by_one = run(llama, requests)
    assert len(launched_ahead) == num_ahead
    assert num_ahead > 20
    assert ahead == one_by_one


def test_preempted_sequences_keep_their_penalties(llama: PreTrainedModel, launched_ahead: list[Step]) -> None:
    requests = [
        request(
            f"r{i}", random_prompt(i, 10), 60, frequency_penalty=0.9, presence_penalty=0.3, top_logprobs=2
        )
        for i in range(4)
    ]
    expected = [run(llama, [one])[0] for one in requests]
    driver = build_driver(llama, capture=Recorder(), block_size=4, num_blocks=40)
    results = driver.run(*requests)
    assert driver.engine.scheduler.num_preemptions > 0
    assert launched_ahead
    assert [results[f"r{i}", 0].token_ids for i in range(4)] == [one.token_ids for one in expected]

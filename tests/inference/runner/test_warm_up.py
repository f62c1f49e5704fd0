"""The warm-up runs every kind of step, and leaves nothing behind."""

from transformers import PreTrainedModel

from inference.interface.config import EngineConfig
from inference.runner.warm_up import warm_up
from inference.scheduling.sequence import Sequence
from tests.inference.conftest import build_driver, generate, request
from tests.inference.recorder import Recorder
from tests.inference.test_exactness import random_prompt


def test_every_kind_of_step_runs() -> None:
    steps: list[list[Sequence]] = []
    config = EngineConfig(max_running=6, max_batch_tokens=40, block_size=4)
    warm_up(steps.append, config, longest=100)
    lengths = [[sequence.num_scheduled_tokens for sequence in step] for step in steps]
    prompts = [length[0] for length in lengths if len(length) == 1 and length[0] > 1]
    assert prompts == [2, 4, 8, 16, 32, 40]
    assert [[1] * count + [40 - count] for count in (1, 2, 4, 6)] == [
        length for length in lengths if length[0] == 1 and length[-1] > 1
    ]
    decodes = [step for step in steps if all(sequence.num_computed_tokens == 1 for sequence in step)]
    assert {len(step) for step in decodes} == {1, 6}
    sampling = [step[0].sampling for step in decodes]
    assert {params.temperature for params in sampling} == {0.0, 1.0}
    for field in ("top_k", "top_logprobs", "frequency_penalty", "presence_penalty", "logit_bias"):
        assert any(getattr(params, field) for params in sampling)
    assert any(params.top_p < 1 for params in sampling)
    assert all(len(sequence.block_table) * 4 >= sequence.num_tokens for step in steps for sequence in step)
    assert all(sum(length) <= config.max_batch_tokens for length in lengths)


def test_steps_stay_within_the_context_and_the_blocks() -> None:
    steps: list[list[Sequence]] = []
    warm_up(steps.append, EngineConfig(max_running=2, max_batch_tokens=512, block_size=1), longest=7)
    sequences = [sequence for step in steps for sequence in step]
    assert max(sequence.num_tokens for sequence in sequences) == 7
    assert all(len(sequence.block_table) == sequence.num_tokens for sequence in sequences)


def test_the_engine_is_clean_afterwards(llama: PreTrainedModel) -> None:
    expected = generate(llama, random_prompt(0, 40), 20)
    driver = build_driver(llama, capture=Recorder(), max_running=4, warmed_up=True)
    assert driver.engine.is_idle
    assert driver.engine.stats.blocks_in_use == 0
    assert driver.run(request("a", random_prompt(0, 40), 20))["a", 0].token_ids == expected

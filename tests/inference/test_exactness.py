"""Tests that the engine's output equals that of transformers, whatever else runs in the batch."""

import random

import pytest
import torch
from transformers import PreTrainedModel

from inference.interface.requests import GenerationRequest
from tests.inference.conftest import (
    ARCHITECTURES,
    VOCAB_SIZE,
    Driver,
    build_driver,
    generate,
    make_model,
    plain_attention,
    request,
)


def random_prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, VOCAB_SIZE) for _ in range(length)]


def reference_logprobs(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    """Log probabilities [T, vocab_size] from one forward pass of transformers."""
    with plain_attention(model), torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].float().log_softmax(-1)


def check_against_generate(
    driver: Driver, requests: list[GenerationRequest], expected: list[list[int]]
) -> None:
    results = driver.run(*requests)
    assert [results[request.request_id, 0].token_ids for request in requests] == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_generate_on_every_architecture(architecture: str) -> None:
    model = make_model(architecture)
    prompts = [random_prompt(i, length) for i, length in enumerate([1, 5, 16, 17, 40, 100])]
    expected = [generate(model, prompt, 24) for prompt in prompts]
    assert len({token for output in expected for token in output}) > 20, "the outputs vary too little"
    driver = build_driver(model, max_batch_tokens=32)
    check_against_generate(driver, [request(f"r{i}", p, 24) for i, p in enumerate(prompts)], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_accurate_as_transformers(dtype: torch.dtype) -> None:
    prompt = random_prompt(0, 50)
    driver = build_driver(make_model("llama").to(dtype))
    result = driver.run(request("a", prompt, 60, temperature=1.0, top_logprobs=0))["a", 0]
    ours = torch.tensor([event.logprobs.logprob for event in result.events if event.logprobs])

    def chosen(model: PreTrainedModel) -> torch.Tensor:
        rows = reference_logprobs(model, prompt + result.token_ids)[len(prompt) - 1 : -1]
        return rows.gather(-1, torch.tensor(result.token_ids)[:, None])[:, 0]

    rounded = make_model("llama").to(dtype)
    theirs, truth = chosen(rounded), chosen(rounded.float())
    assert (ours - truth).abs().mean() < 1.5 * (theirs - truth).abs().mean()


@pytest.mark.parametrize("max_batch_tokens", [1, 3, 7, 16, 64])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_chunk_and_block_sizes_do_not_change_the_output(
    llama: PreTrainedModel, max_batch_tokens: int, block_size: int
) -> None:
    prompts = [random_prompt(i, length) for i, length in enumerate([30, 2, 61])]
    expected = [generate(llama, prompt, 12) for prompt in prompts]
    driver = build_driver(llama, max_batch_tokens=max_batch_tokens, block_size=block_size)
    check_against_generate(driver, [request(f"r{i}", p, 12) for i, p in enumerate(prompts)], expected)


def test_a_prefix_cache_hit_does_not_change_the_output(llama: PreTrainedModel) -> None:
    shared = random_prompt(0, 48)
    prompts = [shared + random_prompt(i, i) for i in range(1, 6)] + [shared]
    expected = [generate(llama, prompt, 20) for prompt in prompts]
    driver = build_driver(llama)
    for i, prompt in enumerate(prompts):
        steps = driver.num_steps
        check_against_generate(driver, [request(f"r{i}", prompt, 20)], [expected[i]])
        assert driver.num_steps - steps == 20


def test_the_prefix_cache_is_used(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=16)
    prompt = random_prompt(0, 160)
    driver.run(request("cold", prompt, 1))
    cold = driver.num_steps
    driver.run(request("warm", prompt, 1))
    assert (cold, driver.num_steps - cold) == (10, 1)


def test_an_answer_is_a_cached_prefix_of_the_next_prompt(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=16)
    prompt = random_prompt(0, 40)
    answer = driver.run(request("first", prompt, 40))["first", 0].token_ids
    steps = driver.num_steps
    follow_up = prompt + answer + random_prompt(1, 10)
    check_against_generate(driver, [request("second", follow_up, 5)], [generate(llama, follow_up, 5)])
    assert driver.num_steps - steps == 5 + 1  # 90 tokens: 64 are cached, 26 are computed


@pytest.mark.parametrize("num_blocks", [9, 12, 20])
def test_preemption_does_not_change_the_output(llama: PreTrainedModel, num_blocks: int) -> None:
    prompts = [random_prompt(i, 10 + 3 * i) for i in range(6)]
    expected = [generate(llama, prompt, 40) for prompt in prompts]
    driver = build_driver(llama, num_blocks=num_blocks, block_size=8, max_batch_tokens=24)
    check_against_generate(driver, [request(f"r{i}", p, 40) for i, p in enumerate(prompts)], expected)
    assert driver.engine.scheduler.num_preemptions > 0


def test_requests_that_come_and_go_do_not_change_the_output_of_others(llama: PreTrainedModel) -> None:
    rng = random.Random(7)
    prompts = [random_prompt(i, rng.randrange(1, 90)) for i in range(24)]
    lengths = [rng.randrange(1, 30) for _ in prompts]
    expected = [generate(llama, prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]
    driver = build_driver(llama, num_blocks=40, block_size=8, max_batch_tokens=40, max_running=6)
    for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        sampling = {"temperature": 1.0} if i % 3 == 2 else {}
        driver.engine.add(request(f"r{i}", prompt, length, nice=i % 5 == 0, **sampling))
        for _ in range(rng.randrange(4)):
            driver.step()
        if i % 7 == 6:
            driver.engine.abort(f"r{i - 1}")
    driver.run()
    for i, tokens in enumerate(expected):
        result = driver.results.get((f"r{i}", 0))
        if i % 3 != 2 and result is not None and result.finish_reason is not None:
            assert result.token_ids == tokens, i
    finished = [result for result in driver.results.values() if result.finish_reason is not None]
    assert len(finished) >= 20


def test_the_choices_of_a_greedy_request_are_all_the_same(llama: PreTrainedModel) -> None:
    prompt = random_prompt(3, 45)
    results = build_driver(llama, max_batch_tokens=16).run(request("a", prompt, 15, n=4))
    assert [results["a", i].token_ids for i in range(4)] == [generate(llama, prompt, 15)] * 4


def test_a_prompt_is_computed_once_for_all_choices(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=16)
    driver.run(request("a", random_prompt(3, 160), 1, n=5))
    # Ten steps for the first choice. Each of the others computes the last block of the prompt.
    assert driver.num_steps <= 10 + 5


def test_it_stops_at_the_same_stop_token_as_generate(llama: PreTrainedModel) -> None:
    prompt = random_prompt(1, 20)
    free = generate(llama, prompt, 30)
    stop = free[9]
    expected = generate(llama, prompt, 30, eos_token_id=stop)
    result = build_driver(llama).run(request("a", prompt, 30, stop_token_ids=(stop,)))["a", 0]
    assert result.token_ids == expected
    assert result.finish_reason == "stop"
    assert len(expected) <= 10


def test_logprobs_equal_those_of_a_plain_forward_pass(llama: PreTrainedModel) -> None:
    prompt = random_prompt(5, 33)
    sampling = {
        "temperature": 1.7,
        "top_p": 0.8,
        "frequency_penalty": 1.5,
        "presence_penalty": -0.5,
        "logit_bias": {7: 5.0, 8: -100.0},
        "top_logprobs": 5,
    }
    driver = build_driver(llama, max_batch_tokens=8)
    results = driver.run(request("a", prompt, 25, **sampling), request("b", prompt[:9], 25))
    result = results["a", 0]
    reference = reference_logprobs(llama, prompt + result.token_ids)[len(prompt) - 1 : -1]
    for event, row in zip(result.events, reference, strict=True):
        assert event.logprobs is not None
        assert event.logprobs.logprob == pytest.approx(row[event.token_id].item(), abs=1e-3)
        assert [token for token, _ in event.logprobs.top] == row.topk(5).indices.tolist()
        values = [value for _, value in event.logprobs.top]
        assert values == pytest.approx(row.topk(5).values.tolist(), abs=1e-3)
    assert all(event.logprobs is None for event in results["b", 0].events)

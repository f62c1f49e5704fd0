"""Chunked prefill, the prefix cache and preemption do not change steered output."""

from collections.abc import Iterable
from functools import cache
from unittest.mock import patch

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from inference.interface.requests import GenerationRequest
from tests.inference.conftest import Driver, generate, make_model, request
from tests.inference.steering.conftest import (
    added_vectors,
    count_computed_tokens,
    plain_logprobs,
    random_tokens,
    steered,
    steered_driver,
    steering_plainly,
)


def vectors_of(one: GenerationRequest) -> dict[int, torch.Tensor]:
    """What the request's concepts add. They all have the same strength."""
    if one.steering is None:
        return {}
    [strength] = set(one.steering.strengths.values())
    return added_vectors(one.steering.strengths, strength)


def expect(model: PreTrainedModel, one: GenerationRequest) -> list[int]:
    """The tokens that plain transformers generate for a request."""
    if one.steering is None:
        return generate(model, one.prompt_token_ids, one.max_tokens)
    with steering_plainly(model, vectors_of(one)):
        return generate(model, one.prompt_token_ids, one.max_tokens)


def check(driver: Driver, requests: Iterable[GenerationRequest], expected: list[list[int]]) -> None:
    requests = list(requests)
    results = driver.run(*requests)
    assert [results[one.request_id, 0].token_ids for one in requests] == expected


@pytest.mark.parametrize("max_batch_tokens", [1, 3, 7, 64])
@pytest.mark.parametrize("block_size", [1, 16])
def test_chunk_and_block_sizes_do_not_change_the_output(
    llama: PreTrainedModel, max_batch_tokens: int, block_size: int
) -> None:
    requests = [
        steered(request("a", random_tokens(0, 30), 10), "kind"),
        steered(request("b", random_tokens(1, 2), 10), "rude", "terse", strength=-1.5),
        request("c", random_tokens(2, 41), 10),
        steered(request("d", random_tokens(3, 1), 10), "rude", strength=0.3),
    ]
    expected = [expect(llama, one) for one in requests]
    driver = steered_driver(llama, max_batch_tokens=max_batch_tokens, block_size=block_size)
    check(driver, requests, expected)


def same_prompt_under_every_steering(max_tokens: int) -> list[GenerationRequest]:
    plain = request("plain", random_tokens(0, 50), max_tokens)
    others = [("kind",), 1.0], [("kind",), 1.25], [("kind",), -1.0], [("rude",), 1.0], [("kind", "rude"), 1.0]
    return [plain, *(steered(plain, *names, strength=strength) for names, strength in others)]


@pytest.mark.parametrize("block_size", [1, 16])
def test_a_prefix_is_reused_only_with_the_same_steering(llama: PreTrainedModel, block_size: int) -> None:
    requests = same_prompt_under_every_steering(max_tokens=10)
    expected = [expect(llama, one) for one in requests]
    assert len(set(map(tuple, expected))) == len(expected), "the outputs are too similar for this test"
    driver = steered_driver(llama, block_size=block_size)
    computed = count_computed_tokens(driver)
    for name, cached in [("cold", 0), ("warm", 48 if block_size == 16 else 49)]:
        for i, (one, tokens) in enumerate(zip(requests, expected, strict=True)):
            computed.clear()
            check(driver, [msgspec.structs.replace(one, request_id=f"{name}{i}")], [tokens])
            # The block of the first position alone is the same for all: that position is never steered.
            shared = 1 if block_size == 1 and i > 0 else 0
            assert sum(computed) == 50 - max(cached, shared) + 9


def test_concurrent_requests_with_different_steering_share_no_block(llama: PreTrainedModel) -> None:
    requests = same_prompt_under_every_steering(max_tokens=20)
    driver = steered_driver(llama)
    driver.run(*(msgspec.structs.replace(one, request_id=f"cold{i}") for i, one in enumerate(requests)))
    for i, one in enumerate(requests):
        assert driver.engine.add(msgspec.structs.replace(one, request_id=f"warm{i}", n=2)).refusal is None
    for _ in range(4):
        driver.step()
    tables = [sequence.block_table for sequence in driver.engine.scheduler.running]
    assert len(tables) == 2 * len(requests)
    assert all(len(table) == 4 for table in tables)
    # Both choices share the three full blocks of the prompt, and each has one more block.
    assert len({block for table in tables for block in table}) == len(requests) * (3 + 2)
    driver.run()


def test_strength_zero_reuses_the_blocks_of_a_request_without_steering(llama: PreTrainedModel) -> None:
    plain = request("plain", random_tokens(0, 50), 10)
    driver = steered_driver(llama)
    computed = count_computed_tokens(driver)
    check(driver, [plain], [expected := generate(llama, plain.prompt_token_ids, 10)])
    computed.clear()
    zero = msgspec.structs.replace(steered(plain, "kind", strength=0.0), request_id="zero")
    check(driver, [zero], [expected])
    assert sum(computed) == 50 - 48 + 9


def test_a_steered_answer_is_a_cached_prefix_for_the_next_prompt(llama: PreTrainedModel) -> None:
    first = steered(request("first", random_tokens(0, 40), 40), "kind")
    driver = steered_driver(llama)
    answer = driver.run(first)["first", 0].token_ids
    prompt = [*first.prompt_token_ids, *answer, *random_tokens(1, 10)]
    computed = count_computed_tokens(driver)
    for name, concepts, cached in [("same", ["kind"], 64), ("plain", [], 0), ("other", ["rude"], 0)]:
        computed.clear()
        follow_up = request(name, prompt, 5)
        follow_up = steered(follow_up, *concepts) if concepts else follow_up
        check(driver, [follow_up], [expect(llama, follow_up)])
        assert sum(computed) == 90 - cached + 4


@pytest.mark.parametrize("num_blocks", [9, 14])
def test_preemption_does_not_change_the_output(llama: PreTrainedModel, num_blocks: int) -> None:
    steerings = [("kind", 1.0), ("rude", -1.0), None, ("kind", 1.0), ("terse", 2.0), None]
    requests = [request(f"r{i}", random_tokens(i, 10 + 3 * i), 30) for i in range(6)]
    requests = [
        steered(one, steering[0], strength=steering[1]) if steering else one
        for one, steering in zip(requests, steerings, strict=True)
    ]
    expected = [expect(llama, one) for one in requests]
    driver = steered_driver(llama, num_blocks=num_blocks, block_size=8, max_batch_tokens=24)
    check(driver, requests, expected)
    assert driver.engine.scheduler.num_preemptions > 0


STEERINGS = [
    None,
    (("kind",), 1.0),
    (("rude",), 1.0),
    (("kind", "rude"), 1.0),
    (("kind",), -2.0),
    (("terse", "kind"), 0.5),
    (("kind",), 0.0),
]
MAX_TOKENS = 14


def pool_request(prompt: int, steering: int) -> GenerationRequest:
    """Prompt 1 begins with prompt 0, prompt 2 differs from both, and prompt 3 is a single token."""
    prompts = [random_tokens(0, 21), random_tokens(0, 21) + random_tokens(1, 9), random_tokens(2, 12), [9]]
    plain = request("", prompts[prompt], MAX_TOKENS)
    chosen = STEERINGS[steering]
    return plain if chosen is None else steered(plain, *chosen[0], strength=chosen[1])


@cache
def shared_model() -> PreTrainedModel:
    return make_model("llama")


@cache
def expect_from_pool(prompt: int, steering: int) -> list[int]:
    """The expected tokens. Also checks that rounding cannot change the choice of any token."""
    one, model = pool_request(prompt, steering), make_model("llama")
    tokens = expect(model, one)
    logprobs = plain_logprobs(model, one.prompt_token_ids + tokens, vectors_of(one))
    best = logprobs[len(one.prompt_token_ids) - 1 : -1].topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 1e-4
    return tokens


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.integers(0, 3),
            st.integers(0, len(STEERINGS) - 1),
            st.integers(1, 2),
            st.booleans(),
        ),
        st.tuples(st.just("step"), st.integers(1, 8)),
        st.tuples(st.just("abort"), st.integers(0, 12), st.sampled_from([None, 0, 1])),
    ),
    min_size=3,
    max_size=20,
)


@given(
    actions=ACTIONS,
    num_blocks=st.sampled_from([7, 12, 40]),
    max_batch_tokens=st.sampled_from([3, 16, 64]),
    max_running=st.sampled_from([2, 8]),
    num_rows=st.sampled_from([1, 3, 72]),
)
@settings(max_examples=25, deadline=None)
def test_random_requests_and_aborts_get_the_output_of_a_request_alone(
    actions: list[tuple], num_blocks: int, max_batch_tokens: int, max_running: int, num_rows: int
) -> None:
    with patch("inference.runner.model_runner._SPARE_ROWS", num_rows - max_running):
        driver = steered_driver(
            shared_model(),
            num_blocks=num_blocks,
            block_size=8,
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
        )
    expected: list[list[int]] = []
    kept: set[tuple[str, int]] = set()
    for name, *arguments in actions:
        if name == "submit":
            prompt, steering, n, nice = arguments
            one = msgspec.structs.replace(
                pool_request(prompt, steering), request_id=str(len(expected)), n=n, nice=nice
            )
            assert driver.engine.add(one).refusal is None
            kept |= {(one.request_id, index) for index in range(n)}
            expected.append(expect_from_pool(prompt, steering))
        elif name == "abort":
            number, index = arguments
            driver.engine.abort(str(number), index)
            kept -= {(str(number), i) for i in ([0, 1] if index is None else [index])}
        else:
            for _ in range(arguments[0]):
                driver.step()
    results = driver.run()
    assert all(results[key].token_ids == expected[int(key[0])] for key in kept)
    for (request_id, _), result in results.items():
        assert result.token_ids == expected[int(request_id)][: len(result.token_ids)]
    assert driver.engine.block_manager.num_free_blocks == num_blocks

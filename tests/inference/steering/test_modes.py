"""Modes and scopes equal the reference, alone and in mixed batches."""

import msgspec
import pytest
from transformers import PreTrainedModel

from inference.interface.requests import GenerationRequest, SteeringScope
from tests.inference.conftest import (
    ARCHITECTURES,
    generate,
    make_model,
    request,
)
from tests.inference.recorder import Recorder
from tests.inference.steering.conftest import (
    count_computed_tokens,
    steered,
    steered_driver,
)
from tests.inference.steering.operations import (
    CONCEPTS,
    MODES,
    PROMPT,
    SCOPES,
    expected_tokens,
    run,
)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("case", MODES)
def test_greedy_output_equals_plain_hooks(llama: PreTrainedModel, case: str, scope: SteeringScope) -> None:
    names, strength, mode = MODES[case]
    expected = expected_tokens(llama, names, strength, mode, scope)
    assert expected != generate(llama, PROMPT, 16), "the steering is too weak for this test"
    one = steered(request("a", PROMPT, 16), *names, strength=strength, mode=mode, scope=scope)
    [result] = run(llama, one, max_batch_tokens=8)
    assert result.token_ids == expected


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES.keys() - {"llama"}))
def test_modes_work_for_every_architecture(architecture: str) -> None:
    model = make_model(architecture)
    cases = [MODES["ablate several"], MODES["clamp several"], MODES["add"]]
    expected = [expected_tokens(model, *case) for case in cases]
    requests = [
        steered(request(f"r{i}", PROMPT, 16), *names, strength=strength, mode=mode)
        for i, (names, strength, mode) in enumerate(cases)
    ]
    assert [result.token_ids for result in run(model, *requests)] == expected


def all_cases() -> list[GenerationRequest]:
    """Every mode with every scope, with and without readings, and requests without steering."""
    requests = [
        steered(
            request(f"{case} {scope}", PROMPT, 10, top_logprobs=3, nice=scope is SteeringScope.PROMPT),
            *names,
            strength=strength,
            mode=mode,
            scope=scope,
        )
        for case, (names, strength, mode) in MODES.items()
        for scope in SCOPES
    ]
    plain = [request(f"plain {i}", PROMPT, 10, top_logprobs=3) for i in range(2)]
    everything = requests + plain
    return [
        msgspec.structs.replace(one, readings=("kind", "group")) if i % 3 == 0 else one
        for i, one in enumerate(everything)
    ]


@pytest.mark.parametrize(
    "config", [{}, {"max_batch_tokens": 16}, {"num_blocks": 12}, {"max_running": 5}], ids=str
)
def test_a_mixed_batch_gives_what_each_request_gets_alone(
    llama: PreTrainedModel, config: dict[str, object]
) -> None:
    requests = all_cases()
    alone = [run(llama, one)[0] for one in requests]
    assert len({tuple(result.token_ids) for result in alone}) > 12, "the outputs are too similar"
    together = run(llama, *requests, **config)
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    for one, other in zip(together, alone, strict=True):
        for event, expected in zip(one.events, other.events, strict=True):
            assert event.readings == (expected.readings and pytest.approx(expected.readings, abs=1e-3))


def test_captured_steps_go_on_beside_modes_and_readings(llama: PreTrainedModel) -> None:
    requests = all_cases()
    expected = [run(llama, one)[0].token_ids for one in requests]
    recorder = Recorder()
    simple = [
        steered(request(f"s{i}", PROMPT, 16), "kind", strength=1 + i / 8, scope=scope)
        for i, scope in enumerate(SCOPES)
    ]
    assert [result.token_ids for result in run(llama, *requests, capture=recorder)] == expected
    alone = [run(llama, one)[0].token_ids for one in simple]
    assert [result.token_ids for result in run(llama, *simple, capture=recorder)] == alone
    assert recorder.num_replayed > 0


def test_requests_that_differ_in_scope_only_share_no_wrong_block(llama: PreTrainedModel) -> None:
    """One after the other, with a prefix cache that has the blocks of all earlier ones."""
    requests = all_cases()
    expected = [run(llama, one)[0].token_ids for one in requests]
    driver = steered_driver(llama, concepts=CONCEPTS, block_size=4)
    for one, tokens in [*zip(requests, expected, strict=True)] * 2:
        driver.results.clear()
        assert driver.run(one)[one.request_id, 0].token_ids == tokens
    assert driver.engine.stats.prefix_cache_hits > 0


def test_with_answer_scope_the_prompt_is_shared_with_unsteered_requests(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS, block_size=4)
    driver.run(request("plain", PROMPT, 4))
    counts = count_computed_tokens(driver)
    one = steered(request("a", PROMPT, 1), "kind", strength=2.0, scope=SteeringScope.ANSWER)
    driver.run(one)
    assert counts == [1]  # the 20 tokens before were found in the cache

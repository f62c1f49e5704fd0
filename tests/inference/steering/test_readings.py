"""Readings of answer tokens equal plain transformers."""

import msgspec
import pytest
from transformers import PreTrainedModel

from inference.interface.requests import RefusalCode
from tests.inference.conftest import (
    ARCHITECTURES,
    generate,
    make_model,
    request,
)
from tests.inference.steering.conftest import (
    added_vectors,
    plain_hidden,
    steered,
    steered_driver,
)
from tests.inference.steering.operations import (
    CONCEPTS,
    PROMPT,
    expected_readings,
    run,
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_readings_equal_plain_transformers(architecture: str) -> None:
    model = make_model(architecture)
    one = msgspec.structs.replace(request("a", PROMPT, 9), readings=("kind", "group"))
    [result] = run(model, one, max_batch_tokens=8)
    assert result.token_ids == generate(model, PROMPT, 9)
    hidden = plain_hidden(model, PROMPT + result.token_ids, {})
    positions = range(len(PROMPT), len(PROMPT) + 9)
    for number, name in enumerate(one.readings):
        readings = [event.readings[number] for event in result.events]
        assert readings == pytest.approx(expected_readings(hidden, CONCEPTS[name], positions), abs=2e-4)


def test_readings_see_the_steering_of_their_request(llama: PreTrainedModel) -> None:
    one = steered(request("a", PROMPT, 6), "terse", strength=1.5)
    [result] = run(llama, msgspec.structs.replace(one, readings=("kind", "terse")))
    vectors = added_vectors(["terse"], 1.5, CONCEPTS)
    hidden = plain_hidden(llama, PROMPT + result.token_ids, vectors)
    positions = range(len(PROMPT), len(PROMPT) + 6)
    for number, name in enumerate(("kind", "terse")):
        readings = [event.readings[number] for event in result.events]
        assert readings == pytest.approx(expected_readings(hidden, CONCEPTS[name], positions), abs=2e-4)


def test_a_stop_token_has_no_reading_and_all_tokens_before_it_have(llama: PreTrainedModel) -> None:
    tokens = generate(llama, PROMPT, 9)
    stop = next(token for i, token in enumerate(tokens) if i >= 3 and token not in tokens[:i])
    one = request("a", PROMPT, 9, stop_token_ids=(stop,))
    [result] = run(llama, msgspec.structs.replace(one, readings=("kind",)))
    assert result.token_ids == tokens[: tokens.index(stop) + 1]
    assert result.finish_reason == "stop"
    assert [event.readings is None for event in result.events] == [False] * tokens.index(stop) + [True]


@pytest.mark.parametrize("config", [{"num_blocks": 8}, {"block_size": 4, "num_blocks": 30}], ids=str)
def test_readings_survive_preemption_and_prefix_hits(
    llama: PreTrainedModel, config: dict[str, object]
) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS, max_batch_tokens=16, **config)
    requests = [msgspec.structs.replace(request(f"r{i}", PROMPT, 40), readings=("kind",)) for i in range(4)]
    results = driver.run(*requests)
    assert driver.engine.scheduler.num_preemptions > 0
    expected = run(llama, requests[0])[0]
    for one in requests:
        result = results[one.request_id, 0]
        assert result.token_ids == expected.token_ids
        readings = [event.readings[0] for event in result.events]
        assert readings == pytest.approx([event.readings[0] for event in expected.events], abs=1e-3)


def test_every_choice_has_its_own_readings(llama: PreTrainedModel) -> None:
    one = request("a", PROMPT, 8, n=3, temperature=1.0)
    driver = steered_driver(llama, concepts=CONCEPTS)
    results = driver.run(msgspec.structs.replace(one, readings=("group",)))
    assert len({tuple(results["a", i].token_ids) for i in range(3)}) == 3
    for i in range(3):
        result = results["a", i]
        hidden = plain_hidden(llama, PROMPT + result.token_ids, {})
        positions = range(len(PROMPT), len(PROMPT) + 8)
        readings = [event.readings[0] for event in result.events]
        assert readings == pytest.approx(expected_readings(hidden, CONCEPTS["group"], positions), abs=2e-4)


def test_readings_do_not_change_the_sampled_tokens(llama: PreTrainedModel) -> None:
    one = request("a", PROMPT, 12, temperature=1.0, top_logprobs=2, frequency_penalty=0.5)
    plain, read = (
        steered_driver(llama, concepts=CONCEPTS).run(request)["a", 0]
        for request in (one, msgspec.structs.replace(one, readings=("kind",)))
    )
    assert [msgspec.structs.replace(event, readings=None) for event in read.events] == plain.events


def test_the_last_token_of_a_full_cache_is_read(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS, num_blocks=2)  # 32 tokens
    full = msgspec.structs.replace(request("a", PROMPT, 32 - len(PROMPT)), readings=("kind",))
    events = driver.run(full)["a", 0].events
    assert len(events) == 32 - len(PROMPT)
    assert all(event.readings for event in events)
    longer = msgspec.structs.replace(full, max_tokens=full.max_tokens + 1)
    assert driver.engine.add(longer).refusal is RefusalCode.CONTEXT_LENGTH_EXCEEDED


def test_an_aborted_request_with_readings_leaves_nothing(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS)
    one = msgspec.structs.replace(request("a", PROMPT, 30, n=2), readings=("kind",))
    driver.engine.add(one)
    for _ in range(4):
        driver.step()
    driver.engine.abort("a", 0)
    driver.step()
    driver.engine.abort("a")
    assert driver.engine.is_idle
    assert not driver.engine._events._unread

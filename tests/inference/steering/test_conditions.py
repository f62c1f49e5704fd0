"""Conditions decide by a reading over the prompt whether the answer is steered."""

import msgspec
import numpy as np
import pytest
from transformers import PreTrainedModel

from inference.interface.requests import RefusalCode, SteeringCondition, SteeringMode, SteeringScope
from tests.inference.conftest import (
    generate,
    request,
)
from tests.inference.recorder import Recorder
from tests.inference.steering.conftest import (
    plain_hidden,
    steered,
    steered_driver,
)
from tests.inference.steering.operations import (
    CONCEPTS,
    PROMPT,
    expected_readings,
    expected_tokens,
    run,
)


def mean_over_prompt(model: PreTrainedModel, name: str) -> float:
    hidden = plain_hidden(model, PROMPT, {})
    return float(np.mean(expected_readings(hidden, CONCEPTS[name], range(1, len(PROMPT)))))


@pytest.mark.parametrize("config", [{}, {"max_batch_tokens": 7}, {"block_size": 4}], ids=str)
@pytest.mark.parametrize("offset", [-0.01, 0.01])
def test_a_condition_decides_by_the_mean_reading_over_the_prompt(
    llama: PreTrainedModel, offset: float, config: dict[str, object]
) -> None:
    limit = mean_over_prompt(llama, "group") + offset
    spec = {"strength": 1.5, "mode": SteeringMode.ADD}
    above, below = (SteeringCondition("group", **{side: limit}) for side in ("above", "below"))
    driver = steered_driver(llama, concepts=CONCEPTS, **config)
    driver.run(request("before", PROMPT, 2))  # so that the prompt is in the prefix cache
    results = driver.run(
        steered(request("above", PROMPT, 16, n=2), "kind", **spec, condition=above),
        steered(request("below", PROMPT, 16, n=2), "kind", **spec, condition=below),
        request("plain", PROMPT, 16),
    )
    plain = generate(llama, PROMPT, 16)
    changed = expected_tokens(llama, ["kind"], 1.5, SteeringMode.ADD, SteeringScope.ANSWER)
    assert changed != plain
    by_name = {"above": changed, "below": plain} if offset < 0 else {"above": plain, "below": changed}
    for name, expected in by_name.items():
        assert [results[name, i].token_ids for i in range(2)] == [expected] * 2
    assert results["plain", 0].token_ids == plain


def test_a_range_has_both_limits(llama: PreTrainedModel) -> None:
    mean = mean_over_prompt(llama, "kind")
    plain = generate(llama, PROMPT, 16)
    for above, below, met in [(mean - 0.1, mean + 0.1, True), (mean + 0.1, mean + 0.2, False)]:
        condition = SteeringCondition("kind", above, below)
        one = steered(request("a", PROMPT, 16), "kind", strength=2.0, condition=condition)
        assert (run(llama, one)[0].token_ids != plain) is met


@pytest.mark.parametrize(
    "config", [{"num_blocks": 8}, {"capture": Recorder()}], ids=["preempted", "captured"]
)
def test_conditions_hold_under_preemption_and_captured_steps(
    llama: PreTrainedModel, config: dict[str, object]
) -> None:
    condition = SteeringCondition("group", above=mean_over_prompt(llama, "group") - 0.01)
    expected = expected_tokens(llama, ["kind"], 1.5, SteeringMode.ADD, SteeringScope.ANSWER, 30)
    requests = [
        steered(request(f"r{i}", PROMPT, 30), "kind", strength=1.5, condition=condition) for i in range(4)
    ]
    assert [result.token_ids for result in run(llama, *requests, **config)] == [expected] * 4


@pytest.mark.parametrize("field", ["readings", "condition"])
def test_an_unknown_concept_is_refused(llama: PreTrainedModel, field: str) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS)
    one = request("a", PROMPT, 4)
    if field == "readings":
        one = msgspec.structs.replace(one, readings=("kind", "unknown"))
    else:
        one = steered(one, "kind", condition=SteeringCondition("unknown", above=0.0))
    refused = driver.engine.add(one)
    assert (refused.refusal, refused.detail) == (RefusalCode.UNKNOWN_STEERING_CONCEPT, "unknown")
    assert driver.engine.is_idle

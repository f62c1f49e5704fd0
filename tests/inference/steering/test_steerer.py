"""A request's concepts give one bank row and a scale, at most the cap, until the request ends."""

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from inference.interface.protocol import RefusalCode, SteeringSpec
from inference.scheduling.probe import Array32
from inference.steering.bank import SteeringBank
from inference.steering.directions import Calibration, Direction, unit_vectors
from inference.steering.steerer import BankFullError, Steerer
from tests.inference.conftest import generate, request
from tests.inference.steering.conftest import (
    CONCEPTS,
    HIDDEN_SIZE,
    NORMS,
    STEERED_BLOCKS,
    make_direction,
    random_tokens,
    steered,
    steered_driver,
    steering_plainly,
)

BLOCKS = (0, 2)


def make_steerer(cap: float, num_rows: int = 8, blocks: tuple[int, ...] = BLOCKS) -> Steerer:
    steerer = Steerer(SteeringBank(num_rows, blocks, HIDDEN_SIZE, torch.device("cpu")))
    steerer.calibration = Calibration(NORMS, cap)
    for concept, direction in CONCEPTS.items():
        steerer.add(concept, direction)
    return steerer


def added(steerer: Steerer, *concepts: str, strength: float = 1.0) -> Array32:
    """[blocks, hidden_size]: what the steering adds to each token of a request."""
    steering = steerer.steer(SteeringSpec(concepts, strength), 1)
    assert steering is not None
    vectors: Array32 = np.float32(steering.scale) * steerer.bank.vectors[:, steering.row].numpy()
    steerer.release(steering)
    return vectors


def relative_norms(vectors: Array32, blocks: tuple[int, ...] = BLOCKS) -> np.ndarray:
    return np.linalg.norm(vectors.astype(np.float64), axis=1) / np.array(NORMS)[list(blocks)]


def test_unit_vectors_have_the_norms_of_the_blocks_output() -> None:
    difference = make_direction(5).difference
    unit = unit_vectors(difference, (2, 0), NORMS)
    assert unit.dtype == np.float32
    for vector, block in zip(unit, (2, 0), strict=True):
        assert np.linalg.norm(vector) == pytest.approx(NORMS[block], rel=1e-6)
        assert np.dot(vector, difference[block]) == pytest.approx(
            np.linalg.norm(vector) * np.linalg.norm(difference[block]), rel=1e-6
        )


def test_a_zero_direction_gives_zero_vectors() -> None:
    unit = unit_vectors(np.zeros((3, HIDDEN_SIZE), np.float32), BLOCKS, NORMS)
    assert np.array_equal(unit, np.zeros((2, HIDDEN_SIZE)))


@pytest.mark.parametrize("concept", CONCEPTS)
def test_strength_one_adds_the_dose_of_the_concept(concept: str) -> None:
    relative = relative_norms(added(make_steerer(cap=10.0), concept))
    assert relative == pytest.approx([CONCEPTS[concept].dose] * 2, rel=1e-6)


def test_several_concepts_add_their_sum() -> None:
    steerer = make_steerer(cap=10.0)
    together = added(steerer, "kind", "rude", strength=-0.5)
    one_by_one = added(steerer, "kind", strength=-0.5) + added(steerer, "rude", strength=-0.5)
    np.testing.assert_allclose(together, one_by_one, rtol=0, atol=1e-5)


@given(
    names=st.lists(st.sampled_from(sorted(CONCEPTS)), min_size=1, max_size=6),
    strength=st.floats(-1e30, 1e30).filter(bool),
    cap=st.floats(0.01, 5.0),
)
@settings(deadline=None)
def test_no_block_gets_more_than_the_cap(names: list[str], strength: float, cap: float) -> None:
    vectors = added(make_steerer(cap), *names, strength=strength)
    assert relative_norms(vectors).max() <= cap * (1 + 1e-6)


@given(
    names=st.lists(st.sampled_from(sorted(CONCEPTS)), min_size=1, unique=True),
    strength=st.floats(-20.0, 20.0).filter(lambda strength: abs(strength) > 1e-3),
)
@settings(deadline=None)
def test_the_cap_changes_the_length_but_not_the_direction(names: list[str], strength: float) -> None:
    cap = 0.5
    free, capped = (
        added(make_steerer(1e9), *names, strength=strength),
        added(make_steerer(cap), *names, strength=strength),
    )
    share = min(1.0, cap / relative_norms(free).max())
    np.testing.assert_allclose(capped, share * free, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("strength", [-1.999999, -0.1, 1e-9, 1.0, 1.999999])
def test_below_the_cap_the_scale_is_exactly_the_strength(strength: float) -> None:
    steering = make_steerer(cap=2 * CONCEPTS["kind"].dose).steer(SteeringSpec(("kind",), strength), 1)
    assert steering is not None
    assert steering.scale == strength


@pytest.mark.parametrize("strength", [-1e6, -2.1, 2.1, 1e6])
def test_above_the_cap_all_strengths_of_a_sign_are_the_same(strength: float) -> None:
    steerer = make_steerer(cap=2 * CONCEPTS["kind"].dose)
    highest = steerer.steer(SteeringSpec(("kind",), np.copysign(3.0, strength)), 1)
    assert steerer.steer(SteeringSpec(("kind",), strength), 1) == highest


def test_the_block_with_the_largest_dose_decides_about_the_cap() -> None:
    direction = make_direction(1)
    steerer = make_steerer(cap=0.5)
    weak, strong = (Direction(np.copy(direction.difference), 1.0) for _ in range(2))
    weak.difference[0] = -strong.difference[
        0
    ]  # they cancel out in decoder block 0, and add up in decoder block 2
    steerer.add("weak", weak)
    steerer.add("strong", strong)
    assert relative_norms(added(steerer, "weak", "strong")) == pytest.approx([0.0, 0.5], rel=1e-6)


def test_concepts_that_cancel_out_add_nothing() -> None:
    direction = make_direction(1)
    steerer = make_steerer(cap=0.5)
    steerer.add("same", direction)
    steerer.add("opposite", Direction(-direction.difference, direction.dose))
    assert not added(steerer, "same", "opposite", strength=20.0).any()


def test_different_steerings_have_different_digests() -> None:
    steerer = make_steerer(cap=10.0)
    specs = [(("kind",), 1.0), (("kind",), -1.0), (("kind",), 1.0000001), (("rude",), 1.0)]
    specs.append((("kind", "rude"), 1.0))
    steerings = [steerer.steer(SteeringSpec(names, strength), 1) for names, strength in specs]
    assert len({steering.digest for steering in steerings if steering}) == len(specs)


def test_one_concept_at_many_strengths_takes_one_row() -> None:
    steerer = make_steerer(cap=10.0)
    rows = {steerer.steer(SteeringSpec(("kind",), strength / 10), 1).row for strength in range(1, 20)}
    assert len(rows) == 1


def test_a_full_bank_raises_an_error() -> None:
    steerer = make_steerer(cap=10.0, num_rows=1)
    steerer.steer(SteeringSpec(("kind",), 1.0), 1)
    with pytest.raises(BankFullError):
        steerer.steer(SteeringSpec(("rude",), 1.0), 1)


@pytest.mark.parametrize("strength", [-50.0, 50.0])
def test_the_engine_adds_at_most_the_cap(llama: PreTrainedModel, strength: float) -> None:
    cap = 0.35
    driver = steered_driver(llama, cap=cap)
    prompt = random_tokens(0, 20)
    result = driver.run(steered(request("a", prompt, 16), "kind", strength=strength))["a", 0]
    vectors = {
        block: np.copysign(cap, strength)
        * NORMS[block]
        * torch.nn.functional.normalize(torch.from_numpy(CONCEPTS["kind"].difference[block]).double(), dim=0)
        for block in STEERED_BLOCKS
    }
    with steering_plainly(llama, vectors):
        assert result.token_ids == generate(llama, prompt, 16)


@pytest.mark.parametrize("num_blocks", [None, 9])
def test_a_running_request_keeps_a_concept_that_is_removed(
    llama: PreTrainedModel, num_blocks: int | None
) -> None:
    """Even if its tokens are computed again after a preemption, or its prefill is not finished."""
    one, other = (
        steered(request(name, random_tokens(i, 24), 24), "kind") for i, name in enumerate(["a", "b"])
    )
    config = {"num_blocks": num_blocks, "block_size": 8, "max_batch_tokens": 16}
    expected = steered_driver(llama, **config).run(one, other)
    driver = steered_driver(llama, **config)
    bank = driver.engine.runner.bank
    free = bank.num_free_rows
    driver.engine.add(one)
    driver.engine.add(other)
    driver.step()
    driver.engine.steerer.remove("kind")
    for _ in range(5):
        driver.step()
    refused = driver.engine.add(msgspec.structs.replace(one, request_id="c"))
    assert (refused.refusal, refused.detail) == (RefusalCode.UNKNOWN_STEERING_CONCEPT, "kind")
    results = driver.run()
    assert {key: result.token_ids for key, result in results.items()} == {
        key: result.token_ids for key, result in expected.items()
    }
    assert (driver.engine.scheduler.num_preemptions > 0) == (num_blocks is not None)
    assert bank.num_free_rows == free


def test_a_running_request_keeps_the_direction_it_started_with(llama: PreTrainedModel) -> None:
    one = steered(request("old", random_tokens(0, 24), 20), "kind")
    new = msgspec.structs.replace(one, request_id="new")
    old_tokens = steered_driver(llama).run(one)["old", 0].token_ids
    replaced = steered_driver(llama)
    replaced.engine.steerer.add("kind", make_direction(9))
    new_tokens = replaced.run(new)["new", 0].token_ids
    assert old_tokens != new_tokens

    driver = steered_driver(llama, max_batch_tokens=16)
    driver.engine.add(one)
    driver.step()
    driver.engine.steerer.add("kind", make_direction(9))
    driver.engine.add(new)
    results = driver.run()
    assert results["old", 0].token_ids == old_tokens
    assert results["new", 0].token_ids == new_tokens

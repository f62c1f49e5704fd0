"""A request's concepts and strengths give the vectors that change its activations, within the limits."""

from collections.abc import Mapping

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from inference.interface.requests import (
    RefusalCode,
    SteeringCondition,
    SteeringMode,
    SteeringScope,
    SteeringSpec,
)
from inference.scheduling.arrays import Array32
from inference.steering.directions import Calibration, Direction
from inference.steering.steerer import RequestSteering, Steerer
from tests.inference.conftest import generate, request
from tests.inference.steering.conftest import (
    NORMS,
    added_vectors,
    concepts_at,
    make_direction,
    random_tokens,
    steered,
    steered_driver,
    steering_plainly,
)

BLOCKS = (0, 2)
CONCEPTS = concepts_at(*BLOCKS)
DOSES = {"kind": 0.3, "rude": 0.4, "terse": 0.2}
NUM_PROMPT = 5


def make_steerer(cap: float, concepts: Mapping[str, Direction] = CONCEPTS) -> Steerer:
    steerer = Steerer()
    steerer.calibration = Calibration(NORMS, cap)
    for concept, direction in concepts.items():
        steerer.add(concept, direction)
    return steerer


def steer(steerer: Steerer, *concepts: str, strength: float = 1.0, **options: object) -> RequestSteering:
    return steerer.steer(SteeringSpec(dict.fromkeys(concepts, strength), **options), NUM_PROMPT)


def added(steerer: Steerer, *concepts: str, strength: float = 1.0) -> Array32:
    """[blocks, hidden_size]: what the steering adds to each token of a request."""
    steering = steer(steerer, *concepts, strength=strength).steering
    assert steering is not None
    assert steering.added is not None
    assert steering.projections == ()
    return steering.added.vectors


def digest(steerer: Steerer, *concepts: str, strength: float = 1.0, **options: object) -> bytes:
    steering = steer(steerer, *concepts, strength=strength, **options).steering
    assert steering is not None
    return steering.digest(NUM_PROMPT, NUM_PROMPT + 1)


def relative_norms(vectors: Array32, blocks: tuple[int, ...] = BLOCKS) -> np.ndarray:
    return np.linalg.norm(vectors.astype(np.float64), axis=1) / np.array(NORMS)[list(blocks)]


@pytest.mark.parametrize("strength", [1.0, -1.0, 0.25, -1.9])
@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_strength_adds_its_share_of_the_dose(concept: str, strength: float) -> None:
    vectors = added(make_steerer(cap=10.0), concept, strength=strength)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, strength * CONCEPTS[concept].vectors(1.0), rtol=1e-6)
    assert relative_norms(vectors) == pytest.approx([abs(strength) * DOSES[concept]] * 2, rel=1e-6)


def test_each_sign_has_its_own_dose() -> None:
    steerer = make_steerer(10.0, {"kind": make_direction(1, blocks=BLOCKS, down_scale=0.25)})
    up, down = added(steerer, "kind"), added(steerer, "kind", strength=-1.0)
    np.testing.assert_allclose(down, -0.25 * up, rtol=1e-6)


@pytest.mark.parametrize(("strength", "blocks"), [(1.0, (0, 1)), (-1.0, (1, 2))])
@pytest.mark.parametrize("mode", [SteeringMode.ADD, SteeringMode.CLAMP])
def test_each_sign_has_its_own_blocks(mode: SteeringMode, strength: float, blocks: tuple[int, ...]) -> None:
    """The others are not even listed, so that they cost nothing."""
    direction = make_direction(1, blocks=(0, 1, 2), up_blocks=(0, 1), down_blocks=(1, 2))
    steering = steer(make_steerer(10.0, {"kind": direction}), "kind", strength=strength, mode=mode).steering
    assert steering is not None
    assert steering.added is not None
    assert steering.added.blocks == blocks
    assert steering.blocks == set(blocks)


def test_ablation_removes_the_direction_from_the_blocks_of_both_signs() -> None:
    direction = make_direction(1, blocks=(0, 1, 2), up_blocks=(0, 1), down_blocks=(1, 2))
    spec = {"strength": 1.0, "mode": SteeringMode.ABLATE}
    steering = steer(make_steerer(10.0, {"kind": direction}), "kind", **spec).steering
    assert steering is not None
    assert steering.blocks == {0, 1, 2}


def test_each_block_has_its_own_length() -> None:
    direction = make_direction(1, blocks=BLOCKS, lengths=(3.0, 0.5))
    vectors = added(make_steerer(10.0, {"kind": direction}), "kind", strength=2.0)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([6.0, 1.0], rel=1e-6)


def test_several_concepts_add_their_sum_at_all_their_blocks() -> None:
    known = {"kind": make_direction(1, blocks=(0, 2)), "rude": make_direction(2, blocks=(1, 2))}
    steering = make_steerer(10.0, known).steer(SteeringSpec({"kind": -0.5, "rude": 1.5}), 1).steering
    assert steering is not None
    assert steering.added is not None
    kind, rude = known["kind"].vectors(-0.5), known["rude"].vectors(1.5)
    assert steering.added.blocks == (0, 1, 2)
    assert steering.blocks == {0, 1, 2}
    expected = [kind[0], rude[0], kind[1] + rude[1]]
    np.testing.assert_allclose(steering.added.vectors, expected, rtol=0, atol=1e-5)


@given(
    names=st.lists(st.sampled_from(sorted(CONCEPTS)), min_size=1, unique=True),
    strength=st.floats(-1e30, 1e30).filter(bool),
    cap=st.floats(0.01, 5.0),
)
@settings(deadline=None)
def test_no_block_gets_more_than_the_cap_or_than_a_concept_may_add_alone(
    names: list[str], strength: float, cap: float
) -> None:
    steerer = make_steerer(cap)
    alone = max(relative_norms(added(steerer, name, strength=strength)).max() for name in names)
    limit = max(cap, alone) if len(names) > 1 else alone
    assert relative_norms(added(steerer, *names, strength=strength)).max() <= limit * (1 + 1e-6)
    assert alone <= 2 * max(DOSES.values()) * (1 + 1e-6)


@given(
    strengths=st.dictionaries(
        st.sampled_from(sorted(CONCEPTS)), st.floats(-3.0, 3.0).filter(lambda x: abs(x) > 1e-3), min_size=2
    ),
    cap=st.floats(0.01, 2.0),
)
@settings(deadline=None)
def test_the_cap_changes_the_length_but_not_the_direction(strengths: dict[str, float], cap: float) -> None:
    free, capped = (make_steerer(limit).steer(SteeringSpec(strengths), 1) for limit in (1e9, cap))
    assert free.steering is not None
    assert free.steering.added is not None
    assert capped.steering is not None
    assert capped.steering.added is not None
    allowed = {concept: min(max(strength, -2.0), 2.0) for concept, strength in strengths.items()}
    assert free.clipped == {c: s for c, s in allowed.items() if s != strengths[c]}
    alone = max(abs(strength) * DOSES[concept] for concept, strength in allowed.items())
    share = min(1.0, max(cap, alone) / relative_norms(free.steering.added.vectors).max())
    expected = share * free.steering.added.vectors
    np.testing.assert_allclose(capped.steering.added.vectors, expected, rtol=1e-5, atol=1e-6)
    used = {concept: capped.clipped.get(concept, strength) for concept, strength in strengths.items()}
    assert used == pytest.approx({concept: share * strength for concept, strength in allowed.items()})


@pytest.mark.parametrize("strength", [-1.999999, -0.1, 1e-9, 1.0, 1.999999, 2.0])
def test_below_the_limits_the_strength_is_used_exactly(strength: float) -> None:
    steered = steer(make_steerer(cap=0.1), "kind", strength=strength)
    assert steered.clipped == {}
    assert np.array_equal(
        added(make_steerer(cap=0.1), "kind", strength=strength), CONCEPTS["kind"].vectors(strength)
    )


@pytest.mark.parametrize("strength", [-1e6, -2.1, 2.1, 1e6])
def test_above_the_maximum_all_strengths_of_a_sign_are_the_same(strength: float) -> None:
    steerer = make_steerer(cap=0.1)
    highest = np.copysign(2.0, strength)
    assert digest(steerer, "kind", strength=strength) == digest(steerer, "kind", strength=highest)
    assert steer(steerer, "kind", strength=strength).clipped == {"kind": highest}


def test_the_block_with_the_largest_dose_decides_about_the_cap() -> None:
    strong = make_direction(1, blocks=BLOCKS)
    opposite = strong.units * np.array([[-1], [1]], np.float32)
    # They cancel out in decoder block 0, and add up in decoder block 2.
    known = {"strong": strong, "weak": make_direction(1, blocks=BLOCKS, units=opposite)}
    assert relative_norms(added(make_steerer(0.5, known), "weak", "strong")) == pytest.approx(
        [0.0, 0.5], rel=1e-6, abs=1e-9
    )


def test_concepts_that_cancel_out_add_nothing() -> None:
    same = make_direction(1, blocks=BLOCKS)
    known = {"same": same, "opposite": make_direction(1, blocks=BLOCKS, units=-same.units)}
    assert not added(make_steerer(0.5, known), "same", "opposite", strength=20.0).any()


def test_different_steerings_have_different_digests() -> None:
    steerer = make_steerer(cap=10.0)
    cases = [(("kind",), 1.0), (("kind",), -1.0), (("kind",), 1.0000001), (("rude",), 1.0)]
    cases.append((("kind", "rude"), 1.0))
    digests = [
        digest(steerer, *names, strength=strength, mode=mode)
        for names, strength in cases
        for mode in SteeringMode
        if strength == 1.0 or mode is SteeringMode.ADD
    ]
    assert len(set(digests)) == len(digests) == 2 * len(cases) + 1
    assert digest(make_steerer(cap=10.0), "kind") == digests[0]


@pytest.mark.parametrize(
    ("options", "steered_positions"),
    [
        ({}, range(1, 9)),
        ({"scope": SteeringScope.ALL}, range(1, 9)),
        ({"scope": SteeringScope.PROMPT}, range(1, NUM_PROMPT)),
        ({"scope": SteeringScope.ANSWER}, range(NUM_PROMPT, 9)),
        ({"condition": SteeringCondition("rude", above=0.5)}, range(NUM_PROMPT, 9)),
        (
            {"scope": SteeringScope.PROMPT, "condition": SteeringCondition("rude", below=0.5)},
            range(NUM_PROMPT, 9),
        ),
    ],
)
@pytest.mark.parametrize("mode", SteeringMode)
def test_the_scope_and_a_condition_say_which_positions_are_steered(
    mode: SteeringMode, options: dict[str, object], steered_positions: range
) -> None:
    steering = steer(make_steerer(1.0), "kind", mode=mode, **options).steering
    assert steering is not None
    assert [p for p in range(9) if steering.covered(p, p + 1)] == list(steered_positions)


def test_a_condition_reads_the_prompt_without_its_first_position() -> None:
    condition = SteeringCondition("rude", above=0.25, below=0.75)
    steered = steer(make_steerer(1.0), "kind", condition=condition).condition
    assert steered is not None
    assert (steered.above, steered.below, steered.met) == (0.25, 0.75, None)
    assert steered.reader.covered(0, 9) == range(1, NUM_PROMPT)
    assert steered.reader.block == CONCEPTS["rude"].reading_block


@pytest.mark.parametrize("strength", [0.0, -0.0])
def test_without_an_effect_there_is_neither_steering_nor_condition(strength: float) -> None:
    condition = SteeringCondition("rude", above=0.5)
    for options in ({}, {"condition": condition}, {"mode": SteeringMode.CLAMP}):
        assert steer(make_steerer(1.0), "kind", strength=strength, **options) == RequestSteering(
            None, None, {}
        )


def test_a_reader_scales_the_projection_on_the_block_to_read() -> None:
    known = {"kind": make_direction(1, blocks=BLOCKS, reading_block=2, reading_range=(-2.0, 6.0))}
    reader = make_steerer(1.0, known).reader("kind", 3, 7)
    assert (reader.block, reader.covered(0, 9)) == (2, range(3, 7))
    np.testing.assert_array_equal(reader.direction.vectors, known["kind"].units[1:])
    for position, projection in enumerate([-2.0, 6.0, 2.0, -10.0], start=3):
        reader.store(position, projection)
    assert reader.values == [0.0, 1.0, 0.5, -1.0]
    assert reader.value(5) == 0.5


@pytest.mark.parametrize("strength", [-50.0, 50.0])
def test_the_engine_adds_at_most_the_concepts_maximum(llama: PreTrainedModel, strength: float) -> None:
    known = {"kind": make_direction(1, 0.3, max_strength=1.2, max_down_strength=1.1)}
    driver = steered_driver(llama, concepts=known)
    prompt = random_tokens(0, 20)
    result = driver.run(steered(request("a", prompt, 16), "kind", strength=strength))["a", 0]
    with steering_plainly(llama, added_vectors(["kind"], 1.2 if strength > 0 else -1.1, known)):
        assert result.token_ids == generate(llama, prompt, 16)


def test_the_engine_adds_at_most_the_cap_for_several_concepts(llama: PreTrainedModel) -> None:
    known = {"kind": make_direction(1, 0.3, (0,)), "same": make_direction(1, 0.5, (0,))}
    driver = steered_driver(llama, cap=0.6, concepts=known)
    prompt = random_tokens(0, 20)
    result = driver.run(steered(request("a", prompt, 16), "kind", "same"))["a", 0]
    with steering_plainly(llama, added_vectors(["kind"], 2.0, known)):
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

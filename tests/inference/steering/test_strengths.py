"""Each concept has its own strength, within the limits of the concept and of the model."""

import msgspec
import pytest
import torch
from transformers import PreTrainedModel

from inference.interface.requests import SteeringMode, SteeringSpec
from tests.inference.conftest import (
    Driver,
    generate,
    request,
)
from tests.inference.steering.conftest import (
    added_vectors,
    make_direction,
    steered,
    steered_driver,
)
from tests.inference.steering.operations import (
    CONCEPTS,
    PROMPT,
    adding,
    changing_plainly,
    run,
)


def test_each_concept_has_its_own_strength(llama: PreTrainedModel) -> None:
    strengths = {"kind": 1.5, "rude": -0.5, "group": -1.0}
    directions = [CONCEPTS[name] for name in strengths]
    changes = adding(["kind"], 1.5)
    vectors = [added_vectors([name], strength, CONCEPTS) for name, strength in strengths.items()]
    vectors[2] = {block: CONCEPTS["group"].down_scale * vector for block, vector in vectors[2].items()}
    blocks = {block for direction in directions for block in direction.blocks}
    changes = {
        block: lambda hidden, total=sum(v[block] for v in vectors if block in v): hidden + total
        for block in blocks
    }
    with changing_plainly(llama, changes, lambda position: True):
        expected = generate(llama, PROMPT, 16)
    one = msgspec.structs.replace(request("a", PROMPT, 16), steering=SteeringSpec(strengths))
    assert run(llama, one)[0].token_ids == expected


@pytest.mark.parametrize(("strength", "blocks"), [(1.5, (0,)), (-1.0, (1, 2))])
def test_each_sign_has_its_own_blocks(
    llama: PreTrainedModel, strength: float, blocks: tuple[int, ...]
) -> None:
    sides = make_direction(6, 0.6, (0, 1, 2), down_scale=0.7, up_blocks=(0,), down_blocks=(1, 2))
    scale = strength if strength > 0 else 0.7 * strength
    units = torch.from_numpy(sides.units).double()
    changes = {
        block: lambda hidden, block=block: hidden + scale * sides.lengths[block] * units[block]
        for block in blocks
    }
    with changing_plainly(llama, changes, lambda position: True):
        expected = generate(llama, PROMPT, 16)
    one = steered(request("a", PROMPT, 16), "sides", strength=strength)
    assert steered_driver(llama, concepts={"sides": sides}).run(one)["a", 0].token_ids == expected


def submit(driver: Driver, spec: SteeringSpec) -> dict[str, float]:
    one = msgspec.structs.replace(request("a", PROMPT, 4), steering=spec)
    answer = driver.engine.add(one)
    assert answer.refusal is None
    driver.engine.abort("a")
    return answer.clipped


def test_a_strength_beyond_the_concepts_maximum_is_clipped_and_reported(llama: PreTrainedModel) -> None:
    narrow = make_direction(5, max_strength=1.2, max_down_strength=0.6)
    driver = steered_driver(llama, concepts={"narrow": narrow, "kind": CONCEPTS["kind"]})
    assert submit(driver, SteeringSpec({"narrow": 2.0})) == {"narrow": 1.2}
    assert submit(driver, SteeringSpec({"narrow": -1.0, "kind": 2.0})) == {"narrow": -0.6}
    assert submit(driver, SteeringSpec({"narrow": 1.2, "kind": -2.0})) == {}
    assert submit(driver, SteeringSpec({"narrow": 1.5}, mode=SteeringMode.CLAMP)) == {"narrow": 1.2}


def test_a_clipped_strength_gives_what_the_maximum_gives(llama: PreTrainedModel) -> None:
    known = {"narrow": make_direction(5, 0.6, max_strength=1.2, max_down_strength=0.6)}
    plain = request("a", PROMPT, 12, top_logprobs=2)
    one, other = (
        steered_driver(llama, concepts=known).run(steered(plain, "narrow", strength=strength))["a", 0]
        for strength in (2.0, 1.2)
    )
    assert one == other


def test_ablation_is_clipped_to_the_whole_component(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS)
    ablate = SteeringMode.ABLATE
    assert submit(driver, SteeringSpec({"kind": 1.5, "rude": -1.0, "terse": 0.3}, mode=ablate)) == {
        "kind": 1.0,
        "rude": 0.0,
    }


def test_concepts_together_are_limited_by_the_cap_or_by_the_strongest(llama: PreTrainedModel) -> None:
    same = make_direction(1, 0.5, (1,))
    known = {"kind": CONCEPTS["kind"], "alike": same, "weak": make_direction(1, 0.1, (1,))}
    driver = steered_driver(llama, cap=0.6, concepts=known)
    assert submit(driver, SteeringSpec({"kind": 2.0})) == {}  # alone it may exceed the cap
    assert submit(driver, SteeringSpec({"kind": 1.0, "alike": 0.1})) == {}
    clipped = submit(driver, SteeringSpec({"kind": 1.0, "alike": 1.0}))
    assert clipped == pytest.approx({"kind": 0.6, "alike": 0.6})
    clipped = submit(driver, SteeringSpec({"kind": 1.6, "weak": 2.0}))
    assert clipped == pytest.approx({"kind": 1.28, "weak": 1.6})

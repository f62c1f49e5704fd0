"""Steered output equals the reference: plain transformers with a hook that adds the same vectors."""

from dataclasses import replace

import msgspec
import pytest
import torch
from transformers import PreTrainedModel

from inference.backends.backend import TORCH
from inference.interface.config import ConfigError
from inference.steering import injection
from inference.steering.injection import SteeringOperations
from tests.inference.conftest import (
    ARCHITECTURES,
    build_driver,
    generate,
    make_model,
    request,
)
from tests.inference.steering.conftest import (
    added_vectors,
    concepts_at,
    make_direction,
    plain_logprobs,
    random_tokens,
    steered,
    steered_driver,
    steering_plainly,
)

STRENGTHS = (-2.0, -0.5, 0.7, 2.0)


def generate_steered(
    model: PreTrainedModel, prompt: list[int], max_tokens: int, vectors: dict[int, torch.Tensor]
) -> list[int]:
    with steering_plainly(model, vectors):
        return generate(model, prompt, max_tokens)


@pytest.mark.parametrize("blocks", [(1,), (0, 1, 2)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_generate_with_a_hook(architecture: str, blocks: tuple[int, ...]) -> None:
    model = make_model(architecture)
    prompts = [random_tokens(i, length) for i, length in enumerate([1, 17, 30, 2])]
    known = concepts_at(*blocks)
    expected = [
        generate_steered(model, prompt, 12, added_vectors(["kind"], strength, known))
        for prompt, strength in zip(prompts, STRENGTHS, strict=True)
    ]
    assert expected[3] != generate(model, prompts[3], 12), "the steering is too weak for this test"
    driver = steered_driver(model, concepts=known, max_batch_tokens=32)
    results = driver.run(
        *(
            steered(request(f"r{i}", prompt, 12), "kind", strength=strength)
            for i, (prompt, strength) in enumerate(zip(prompts, STRENGTHS, strict=True))
        )
    )
    assert [results[f"r{i}", 0].token_ids for i in range(4)] == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_equal_a_forward_pass_with_a_hook(architecture: str) -> None:
    model = make_model(architecture)
    prompt = random_tokens(5, 25)
    known = concepts_at(0, 2)
    driver = steered_driver(model, concepts=known, max_batch_tokens=8)
    greedy = request("", prompt, 12, top_logprobs=3)
    for strength in STRENGTHS:
        named = msgspec.structs.replace(greedy, request_id=str(strength))
        driver.engine.add(steered(named, "kind", "rude", strength=strength))
    results = driver.run()
    for strength in STRENGTHS:
        result = results[str(strength), 0]
        vectors = added_vectors(["kind", "rude"], strength, known)
        rows = plain_logprobs(model, prompt + result.token_ids, vectors)[len(prompt) - 1 : -1]
        for event, row in zip(result.events, rows, strict=True):
            assert event.logprobs is not None
            assert event.logprobs.logprob == pytest.approx(row[event.token_id].item(), abs=1e-3)
            assert [token for token, _ in event.logprobs.top] == row.topk(3).indices.tolist()
            values = [value for _, value in event.logprobs.top]
            assert values == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)


def test_the_first_position_is_never_steered(llama: PreTrainedModel) -> None:
    prompt = random_tokens(7, 1)
    driver = steered_driver(llama, concepts=concepts_at(0))
    first = driver.run(steered(request("a", prompt, 1, top_logprobs=5), "kind", strength=2.0))["a", 0]
    plain = driver.run(request("b", prompt, 1, top_logprobs=5))["b", 0]
    assert first.events[0].logprobs == plain.events[0].logprobs


def test_all_generated_positions_are_steered(llama: PreTrainedModel) -> None:
    """The log probabilities equal the steered ones, and differ from those without steering."""
    prompt = random_tokens(8, 3)
    known = concepts_at(2)  # the last one: other positions do not matter
    driver = steered_driver(llama, concepts=known)
    result = driver.run(steered(request("a", prompt, 6, top_logprobs=20), "kind"))["a", 0]
    tokens = prompt + result.token_ids
    with_all = plain_logprobs(llama, tokens, added_vectors(["kind"], known=known))
    with_none = plain_logprobs(llama, tokens, {})
    for position, event in enumerate(result.events, start=len(prompt) - 1):
        assert event.logprobs is not None
        ids, values = zip(*event.logprobs.top, strict=True)
        assert values == pytest.approx(with_all[position, list(ids)].tolist(), abs=1e-3)
        assert max(abs(with_none[position, list(ids)] - torch.tensor(values, device="cpu"))) > 0.05


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_concepts_at_different_blocks_steer_together(architecture: str) -> None:
    """In one batch and in one request."""
    model = make_model(architecture)
    known = {
        "kind": make_direction(1, 0.3, (2,)),
        "rude": make_direction(2, 0.4, (0,)),
        "terse": make_direction(3, 0.2, (0, 1, 2)),
    }
    prompt = random_tokens(6, 21)
    sets = [("kind",), ("rude",), ("terse",), ("kind", "rude"), ("terse", "kind"), tuple(known)]
    expected = [generate_steered(model, prompt, 12, added_vectors(names, 1.5, known)) for names in sets]
    assert len(set(map(tuple, expected))) > 4, "the outputs are too similar for this test"
    requests = [steered(request(f"r{i}", prompt, 12), *names, strength=1.5) for i, names in enumerate(sets)]
    results = steered_driver(model, concepts=known, max_batch_tokens=32).run(*requests)
    assert [results[one.request_id, 0].token_ids for one in requests] == expected


def test_blocks_without_steering_in_the_batch_are_left_alone(llama: PreTrainedModel) -> None:
    known = {"kind": make_direction(1, 0.3, (1,)), "rude": make_direction(2, 0.4, (0, 1))}
    steered_blocks: list[int] = []

    def steer(hidden: torch.Tensor, vectors: torch.Tensor, rows: torch.Tensor) -> None:
        steered_blocks.append(vectors.storage_offset() // vectors.numel())
        injection.steer(hidden, vectors, rows)

    backend = replace(TORCH, steering=SteeringOperations(steer=steer))
    driver = steered_driver(llama, concepts=known, backend=backend)
    one = request("a", random_tokens(6, 5), 1)
    cases = [((), []), (("kind",), [1]), (("rude",), [0, 1]), (("kind", "rude"), [0, 1])]
    for names, blocks in cases:
        steered_blocks.clear()
        driver.results.clear()
        driver.run(steered(one, *names) if names else one)
        assert steered_blocks == blocks


@pytest.mark.parametrize("blocks", [(3,), (-1,), (0, 7)])
def test_a_block_that_the_model_does_not_have_is_refused(
    llama: PreTrainedModel, blocks: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match="the model has decoder blocks 0 to 2"):
        build_driver(llama, steering_blocks=blocks)


def test_a_model_run_with_its_own_attention_is_not_steered(llama: PreTrainedModel) -> None:
    tokens = random_tokens(4, 12)
    driver = steered_driver(llama)
    before = plain_logprobs(llama, tokens, {})
    driver.run(steered(request("a", tokens, 5), "kind"))
    assert torch.equal(plain_logprobs(llama, tokens, {}), before)


def test_bfloat16_is_as_accurate_as_transformers() -> None:
    prompt = random_tokens(0, 50)
    driver = steered_driver(make_model("llama").bfloat16())
    sampled = steered(request("a", prompt, 60, temperature=1.0, top_logprobs=0), "kind", strength=2.0)
    result = driver.run(sampled)["a", 0]
    ours = torch.tensor([e.logprobs.logprob for e in result.events if e.logprobs], device="cpu")
    vectors = added_vectors(["kind"], 2.0)

    def chosen(model: PreTrainedModel, vectors: dict[int, torch.Tensor]) -> torch.Tensor:
        rows = plain_logprobs(model, prompt + result.token_ids, vectors)[len(prompt) - 1 : -1]
        return rows.gather(-1, torch.tensor(result.token_ids, device="cpu")[:, None])[:, 0]

    rounded = make_model("llama").bfloat16()
    theirs, unsteered = chosen(rounded, vectors), chosen(rounded, {})
    truth = chosen(rounded.float(), vectors)
    assert (ours - truth).abs().mean() < 1.5 * (theirs - truth).abs().mean()
    assert (ours - truth).abs().mean() < 0.2 * (unsteered - truth).abs().mean()

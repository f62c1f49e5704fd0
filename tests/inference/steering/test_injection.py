"""Steered output equals the reference: plain transformers with a hook that adds the same vectors."""

import msgspec
import pytest
import torch
from transformers import PreTrainedModel

from inference.interface.config import ConfigError
from tests.inference.conftest import (
    ARCHITECTURES,
    build_driver,
    generate,
    make_model,
    request,
)
from tests.inference.steering.conftest import (
    STEERED_BLOCKS,
    added_vectors,
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
    expected = [
        generate_steered(model, prompt, 12, added_vectors(blocks, ["kind"], strength))
        for prompt, strength in zip(prompts, STRENGTHS, strict=True)
    ]
    assert expected[3] != generate(model, prompts[3], 12), "the steering is too weak for this test"
    driver = steered_driver(model, steering_blocks=blocks, max_batch_tokens=32)
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
    driver = steered_driver(model, steering_blocks=(0, 2), max_batch_tokens=8)
    greedy = request("", prompt, 12, top_logprobs=3)
    for strength in STRENGTHS:
        named = msgspec.structs.replace(greedy, request_id=str(strength))
        driver.engine.add(steered(named, "kind", "rude", strength=strength))
    results = driver.run()
    for strength in STRENGTHS:
        result = results[str(strength), 0]
        vectors = added_vectors((0, 2), ["kind", "rude"], strength)
        rows = plain_logprobs(model, prompt + result.token_ids, vectors)[len(prompt) - 1 : -1]
        for event, row in zip(result.events, rows, strict=True):
            assert event.logprobs is not None
            assert event.logprobs.logprob == pytest.approx(row[event.token_id].item(), abs=1e-3)
            assert [token for token, _ in event.logprobs.top] == row.topk(3).indices.tolist()
            values = [value for _, value in event.logprobs.top]
            assert values == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)


def test_the_first_position_is_never_steered(llama: PreTrainedModel) -> None:
    prompt = random_tokens(7, 1)
    driver = steered_driver(llama, steering_blocks=(0,))
    first = driver.run(steered(request("a", prompt, 1, top_logprobs=5), "kind", strength=2.0))["a", 0]
    plain = driver.run(request("b", prompt, 1, top_logprobs=5))["b", 0]
    assert first.events[0].logprobs == plain.events[0].logprobs


def test_all_generated_positions_are_steered(llama: PreTrainedModel) -> None:
    """The log probabilities equal the steered ones, and differ from those without steering."""
    prompt = random_tokens(8, 3)
    driver = steered_driver(llama, steering_blocks=(2,))  # the last one: other positions do not matter
    result = driver.run(steered(request("a", prompt, 6, top_logprobs=20), "kind"))["a", 0]
    tokens = prompt + result.token_ids
    with_all = plain_logprobs(llama, tokens, added_vectors((2,), ["kind"]))
    with_none = plain_logprobs(llama, tokens, {})
    for position, event in enumerate(result.events, start=len(prompt) - 1):
        assert event.logprobs is not None
        ids, values = zip(*event.logprobs.top, strict=True)
        assert values == pytest.approx(with_all[position, list(ids)].tolist(), abs=1e-3)
        assert max(abs(with_none[position, list(ids)] - torch.tensor(values, device="cpu"))) > 0.05


def test_the_default_steered_block_is_at_six_tenths_of_the_depth() -> None:
    for num_layers, block in [(1, 0), (2, 1), (3, 2), (5, 3), (10, 6)]:
        driver = build_driver(make_model("llama", num_hidden_layers=num_layers))
        assert driver.engine.runner.bank.blocks == (block,)


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
    vectors = added_vectors(STEERED_BLOCKS, ["kind"], 2.0)

    def chosen(model: PreTrainedModel, vectors: dict[int, torch.Tensor]) -> torch.Tensor:
        rows = plain_logprobs(model, prompt + result.token_ids, vectors)[len(prompt) - 1 : -1]
        return rows.gather(-1, torch.tensor(result.token_ids, device="cpu")[:, None])[:, 0]

    rounded = make_model("llama").bfloat16()
    theirs, unsteered = chosen(rounded, vectors), chosen(rounded, {})
    truth = chosen(rounded.float(), vectors)
    assert (ours - truth).abs().mean() < 1.5 * (theirs - truth).abs().mean()
    assert (ours - truth).abs().mean() < 0.2 * (unsteered - truth).abs().mean()

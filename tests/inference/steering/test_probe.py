"""A probe's measurements equal plain transformers, however the engine splits and schedules the text."""

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from inference.scheduling.probe import Probe, locate
from inference.scheduling.steering import BlockVectors, Steering
from tests.inference.conftest import ARCHITECTURES, Driver, generate, make_model, request
from tests.inference.steering.conftest import (
    HIDDEN_SIZE,
    NUM_LAYERS,
    STEERED_BLOCKS,
    count_computed_tokens,
    feed,
    plain_hidden,
    plain_logprobs,
    random_tokens,
    steered,
    steered_driver,
)


def make_steering(seed: int, norm: float = 6.0) -> Steering:
    vectors = np.random.default_rng(seed).standard_normal((len(STEERED_BLOCKS), HIDDEN_SIZE))
    vectors *= norm / np.linalg.norm(vectors, axis=1, keepdims=True)
    return Steering(BlockVectors(STEERED_BLOCKS, vectors.astype(np.float32)))


def make_probes() -> list[Probe]:
    """Probes of several lengths, with and without steering. Some share a prompt."""
    shared = random_tokens(0, 20)
    return [
        Probe(shared, random_tokens(1, 13), captures=True),
        Probe(shared, random_tokens(2, 30), make_steering(1), captures=True),
        Probe(shared, random_tokens(2, 30), make_steering(2), captures=True),
        Probe(shared, random_tokens(2, 30), make_steering(2)),
        Probe([9], random_tokens(3, 1), captures=True),
        Probe([9], random_tokens(4, 7), make_steering(3), captures=True),
        Probe(random_tokens(5, 31), [7], captures=True),
    ]


def check(model: PreTrainedModel, probe: Probe) -> None:
    """Compares the probe with plain transformers with the same steering."""
    vectors = {}
    if probe.steering is not None and (added := probe.steering.added) is not None:
        vectors = dict(zip(added.blocks, torch.from_numpy(added.vectors), strict=True))
    start, count = len(probe.prompt_token_ids), len(probe.content_token_ids)
    logprobs = plain_logprobs(model, probe.token_ids, vectors)[start - 1 : -1]
    content_ids = torch.tensor(probe.content_token_ids, device="cpu")
    expected = logprobs.gather(1, content_ids[:, None])[:, 0]
    np.testing.assert_allclose(probe.logprobs, expected.numpy(), rtol=0, atol=1e-3)
    assert probe.mean_logprob == pytest.approx(expected.mean().item(), abs=1e-4)
    if not probe.captures:
        return
    content = plain_hidden(model, probe.token_ids, vectors)[:, start:]
    assert content.shape == (NUM_LAYERS, count, HIDDEN_SIZE)
    mean = content.mean(1).numpy()
    error = np.linalg.norm(probe.mean_hidden - mean, axis=1)
    assert (error <= 5e-5 * np.linalg.norm(mean, axis=1)).all()
    np.testing.assert_allclose(probe.mean_norm, content.norm(dim=2).mean(1).numpy(), rtol=5e-5)


def compute(driver: Driver, probes: list[Probe]) -> None:
    feeder = feed(driver, *probes)
    driver.step()
    driver.run()
    assert sorted(map(id, feeder.computed)) == sorted(map(id, probes))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_measurements_equal_plain_transformers(architecture: str) -> None:
    model = make_model(architecture)
    probes = make_probes()
    compute(steered_driver(model, max_batch_tokens=64), probes)
    for probe in probes:
        check(model, probe)


@pytest.mark.parametrize("max_batch_tokens", [1, 5, 19, 21, 512])
@pytest.mark.parametrize("block_size", [1, 4])
def test_chunked_prefill_does_not_change_measurements(
    llama: PreTrainedModel, max_batch_tokens: int, block_size: int
) -> None:
    probes = make_probes()
    compute(steered_driver(llama, max_batch_tokens=max_batch_tokens, block_size=block_size), probes)
    for probe in probes:
        check(llama, probe)


@pytest.mark.parametrize(("prompt_length", "cached"), [(1, 0), (16, 12), (17, 16), (18, 16)])
@pytest.mark.parametrize("captures", [False, True])
def test_a_prefix_cache_hit_does_not_change_measurements(
    llama: PreTrainedModel, prompt_length: int, cached: int, captures: bool
) -> None:
    prompt, content = random_tokens(0, prompt_length), random_tokens(1, 15)
    driver = steered_driver(llama, block_size=4)
    driver.run(request("same", prompt + content, 1))
    computed = count_computed_tokens(driver)
    probe = Probe(prompt, content, captures=captures)
    compute(driver, [probe])
    assert sum(computed) == prompt_length + 15 - cached
    check(llama, probe)


def test_steered_probes_share_no_blocks_with_other_sequences(llama: PreTrainedModel) -> None:
    prompt, content = random_tokens(0, 20), random_tokens(1, 5)
    driver = steered_driver(llama, block_size=4)
    driver.run(request("plain", prompt + content, 1), steered(request("kind", prompt + content, 1), "kind"))
    computed = count_computed_tokens(driver)
    for cached in (0, 16):
        computed.clear()
        probe = Probe(prompt, content, make_steering(1), captures=True)
        compute(driver, [probe])
        assert sum(computed) == 25 - cached
        check(llama, probe)


@pytest.mark.parametrize("steps_before", [1, 2, 3, 4, 6])
def test_preemption_does_not_change_measurements(llama: PreTrainedModel, steps_before: int) -> None:
    driver = steered_driver(llama, num_blocks=10, block_size=8, max_batch_tokens=8)
    probe = Probe(random_tokens(0, 12), random_tokens(1, 40), make_steering(1), captures=True)
    feeder = feed(driver, probe)
    for _ in range(steps_before):
        driver.step()
    assert (np.isnan(probe.logprobs).sum() < 40) == (steps_before > 1)
    driver.engine.add(request("urgent", random_tokens(2, 50), 12))
    driver.step()
    assert driver.engine.scheduler.num_preemptions == 1
    results = driver.run()
    assert feeder.computed == [probe]
    check(llama, probe)
    assert results["urgent", 0].token_ids == generate(llama, random_tokens(2, 50), 12)


@pytest.mark.parametrize("max_batch_tokens", [9, 64])
def test_probes_and_running_requests_do_not_change_each_other(
    llama: PreTrainedModel, max_batch_tokens: int
) -> None:
    prompts = [random_tokens(10 + i, 5 + 9 * i) for i in range(4)]
    expected = [generate(llama, prompt, 25) for prompt in prompts]
    driver = steered_driver(llama, max_batch_tokens=max_batch_tokens)
    for i, prompt in enumerate(prompts):
        driver.engine.add(request(f"r{i}", prompt, 25))
    driver.step()
    probes = make_probes()
    feed(driver, *probes)
    results = driver.run()
    assert [results[f"r{i}", 0].token_ids for i in range(4)] == expected
    for probe in probes:
        check(llama, probe)


def test_a_computed_probe_leaves_no_block_or_hook(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama)
    blocks = driver.engine.block_manager
    hooks = [list(block._forward_hooks) for block in llama.model.layers]
    compute(driver, make_probes())
    assert blocks.num_free_blocks == blocks.num_blocks
    assert driver.engine.is_idle
    assert [list(block._forward_hooks) for block in llama.model.layers] == hooks


def test_blocks_of_a_probe_with_nan_are_not_reused(llama: PreTrainedModel) -> None:
    with torch.no_grad():
        llama.model.embed_tokens.weight[13] = float("nan")
    driver = steered_driver(llama, block_size=4)
    text = [5, 6, 7, *[13] * 20]
    broken = Probe(text[:3], text[3:], captures=True)
    compute(driver, [broken])
    assert np.isnan(broken.mean_logprob)
    assert set(driver.engine.block_manager._hash_of_block) == set()


@pytest.mark.parametrize("max_batch_tokens", [1, 5, 512])
def test_a_probe_that_is_not_scored_only_captures(llama: PreTrainedModel, max_batch_tokens: int) -> None:
    driver = steered_driver(llama, max_batch_tokens=max_batch_tokens, block_size=4)
    prompt, text = random_tokens(0, 8), random_tokens(1, 11)
    plain, scored = Probe(prompt, text, captures=True, scores=False), Probe(prompt, text, captures=True)
    for probe in (scored, plain):
        computed = count_computed_tokens(driver)
        compute(driver, [probe])
    assert sum(computed) == 11, "the whole prompt is in the cache"
    check(llama, scored)
    np.testing.assert_allclose(plain.hidden_sum, scored.hidden_sum, rtol=0, atol=1e-3)
    np.testing.assert_allclose(plain.norm_sum, scored.norm_sum, rtol=1e-4)
    assert np.isnan(plain.logprobs).all()
    assert plain.is_finite


@pytest.mark.parametrize("num_prompt", [1, 2, 4])
@pytest.mark.parametrize("num_content", [1, 2, 5])
@pytest.mark.parametrize("offset", [0, 7])
def test_locate_is_right_for_every_part_of_a_text(num_prompt: int, num_content: int, offset: int) -> None:
    prompt, content = list(range(num_prompt)), list(range(100, 100 + num_content))
    probe = Probe(prompt, content)
    text = prompt + content
    for first in range(len(text)):
        for end in range(first + 1, len(text) + 1):
            part = {position: position - first + offset for position in range(first, end)}
            span = locate(probe, first, range(offset, offset + end - first))
            targets = [text[p + 1] for p in part if p + 1 < len(text) and text[p + 1] in content]
            assert list(span.scored_tokens) == [
                token for p, token in part.items() if p + 1 < len(text) and text[p + 1] in content
            ]
            assert content[span.scored_content] == targets
            captured = list(range(100))[span.captured_tokens]
            assert captured == [token for p, token in part.items() if text[p] in content]
            assert span.starts_content == (num_prompt in part)
            assert span.probe is probe
            unscored = locate(
                Probe(prompt, content, scores=False), first, range(offset, offset + end - first)
            )
            assert list(unscored.scored_tokens) == content[unscored.scored_content] == []
            assert unscored.captured_tokens == span.captured_tokens

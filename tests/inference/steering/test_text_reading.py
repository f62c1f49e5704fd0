"""Readings of given texts equal plain transformers, and fail without any effect on other work."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from inference.interface.concepts import ReadingsResult, ReadTexts
from inference.runner.model_runner import Step
from inference.scheduling.probe import MAX_TOKENS_BESIDE_REQUESTS, MAX_TOKENS_IN_FLIGHT, Probe
from inference.scheduling.sequence import Sequence
from tests.inference.conftest import ARCHITECTURES, VOCAB_SIZE, Driver, generate, make_model, request
from tests.inference.recorder import Recorder
from tests.inference.steering.conftest import (
    count_computed_tokens,
    feed,
    make_direction,
    make_training,
    plain_hidden,
    random_tokens,
    steered,
    steered_driver,
)
from tests.inference.steering.operations import CONCEPTS, expected_readings

PROMPTS = [random_tokens(1, 20), random_tokens(1, 20), [9], random_tokens(2, 31)]
TEXTS = [random_tokens(3, 13), random_tokens(4, 30), random_tokens(5, 7), [8]]


def expect(
    model: PreTrainedModel,
    concept: str,
    prompts: list[list[int]] = PROMPTS,
    texts: list[list[int]] = TEXTS,
) -> list[list[float]]:
    return [
        expected_readings(
            plain_hidden(model, prompt + text, {}),
            CONCEPTS[concept],
            range(len(prompt), len(prompt) + len(text)),
        )
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def check(result: ReadingsResult | None, expected: list[list[float]]) -> None:
    assert result is not None
    assert result.detail == ""
    assert result.readings is not None
    assert len(result.readings) == len(expected)
    for readings, numbers in zip(result.readings, expected, strict=True):
        assert readings == pytest.approx(numbers, abs=2e-4)


def finish(driver: Driver) -> Iterator[ReadingsResult]:
    """The readings of all steps until the engine is idle."""
    while not driver.engine.is_idle:
        yield from driver.step().readings


def read(driver: Driver, request_id: str, concept: str = "kind") -> None:
    driver.engine.measuring.read_texts(ReadTexts(request_id, concept, PROMPTS, TEXTS))


def read_lengths(driver: Driver, request_id: str, lengths: list[int]) -> None:
    """Reads random texts of these lengths, each behind one token."""
    texts = [random_tokens(i, length) for i, length in enumerate(lengths)]
    driver.engine.measuring.read_texts(ReadTexts(request_id, "kind", [[5]] * len(texts), texts))


def tokens_in_flight(driver: Driver) -> tuple[int, int]:
    """How many content tokens of trainings and of readings wait or run."""
    sequences = list(driver.engine.scheduler.sequences())
    works = [sequence.probe or sequence.answer for sequence in sequences]
    sizes = [(work.num_tokens, isinstance(work, Probe) and not work.scores) for work in works if work]
    return tuple(sum(size for size, reads in sizes if reads is of_reading) for of_reading in (False, True))


def check_nothing_is_left(driver: Driver) -> None:
    blocks = driver.engine.block_manager
    assert driver.engine.is_idle
    assert blocks.num_free_blocks == blocks.num_blocks
    assert list(driver.engine.scheduler.sequences()) == []


@pytest.mark.parametrize("concept", ["kind", "group"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_readings_equal_plain_transformers(architecture: str, concept: str) -> None:
    model = make_model(architecture)
    driver = steered_driver(model, concepts=CONCEPTS)
    result = driver.read(ReadTexts("a", concept, PROMPTS, TEXTS))
    assert result.request_id == "a"
    assert max(abs(number) for numbers in result.readings or [] for number in numbers) > 0.1
    check(result, expect(model, concept))
    assert driver.engine.is_idle


@pytest.mark.parametrize("max_batch_tokens", [1, 5, 21, 512])
@pytest.mark.parametrize("block_size", [1, 4])
def test_chunked_prefill_does_not_change_readings(
    llama: PreTrainedModel, max_batch_tokens: int, block_size: int
) -> None:
    driver = steered_driver(
        llama, concepts=CONCEPTS, max_batch_tokens=max_batch_tokens, block_size=block_size
    )
    check(driver.read(ReadTexts("a", "group", PROMPTS, TEXTS)), expect(llama, "group"))


@pytest.mark.parametrize(("prompt_length", "cached"), [(1, 0), (16, 16), (17, 16), (18, 16)])
def test_a_cached_prompt_does_not_change_readings(
    llama: PreTrainedModel, prompt_length: int, cached: int
) -> None:
    prompt, text = random_tokens(0, prompt_length), random_tokens(1, 15)
    driver = steered_driver(llama, concepts=CONCEPTS, block_size=4)
    driver.run(request("same", prompt + text, 1))
    computed = count_computed_tokens(driver)
    result = driver.read(ReadTexts("a", "kind", [prompt], [text]))
    assert sum(computed) == prompt_length + 15 - cached
    check(result, expect(llama, "kind", [prompt], [text]))


@pytest.mark.parametrize("steps_before", [1, 2, 3, 4, 6])
def test_preemption_does_not_change_readings(llama: PreTrainedModel, steps_before: int) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS, num_blocks=10, block_size=8, max_batch_tokens=8)
    prompt, text, urgent = random_tokens(0, 12), random_tokens(1, 40), random_tokens(2, 50)
    driver.engine.measuring.read_texts(ReadTexts("a", "kind", [prompt], [text]))
    for _ in range(steps_before):
        assert driver.step().readings == []
    driver.engine.add(request("urgent", urgent, 12))
    results = [*driver.step().readings, *finish(driver)]
    assert driver.engine.scheduler.num_preemptions == 1
    [result] = results
    check(result, expect(llama, "kind", [prompt], [text]))
    assert driver.results["urgent", 0].token_ids == generate(llama, urgent, 12)


@pytest.mark.parametrize("options", [{"max_batch_tokens": 9}, {}, {"max_running": 3}], ids=str)
@pytest.mark.parametrize("captured", [False, True])
def test_readings_and_requests_do_not_change_each_other(
    llama: PreTrainedModel, captured: bool, options: dict[str, int]
) -> None:
    prompts = [random_tokens(10 + i, 5 + 9 * i) for i in range(4)]
    plain = [request(f"r{i}", prompt, 25) for i, prompt in enumerate(prompts)]
    requests = [steered(one, "kind", strength=i - 1.5) if i % 2 else one for i, one in enumerate(plain)]
    alone = [steered_driver(llama, concepts=CONCEPTS).run(one)[one.request_id, 0] for one in requests]
    recorder = Recorder()
    capture = {"capture": recorder} if captured else {}
    driver = steered_driver(llama, concepts=CONCEPTS, **options, **capture)
    for one in requests:
        driver.add(one)
    driver.step()
    driver.step()
    replayed = recorder.num_replayed
    read(driver, "a", "kind")
    read(driver, "b", "group")
    results = {result.request_id: result for result in finish(driver)}
    assert results.keys() == {"a", "b"}
    check(results["a"], expect(llama, "kind"))
    check(results["b"], expect(llama, "group"))
    assert [driver.results[one.request_id, 0].token_ids for one in requests] == [
        result.token_ids for result in alone
    ]
    assert (recorder.num_replayed > replayed) is captured


def test_readings_compute_no_logits(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS, max_batch_tokens=40)
    rows: list[int] = []
    head = llama.lm_head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    read(driver, "a")
    [result] = finish(driver)
    head.remove()
    assert rows == [0] * driver.num_steps
    check(result, expect(llama, "kind"))


@pytest.mark.parametrize(
    ("serving", "limit"), [(False, MAX_TOKENS_IN_FLIGHT), (True, MAX_TOKENS_BESIDE_REQUESTS)]
)
def test_the_number_of_tokens_that_readings_add_to_a_step_is_limited(
    llama: PreTrainedModel, serving: bool, limit: int
) -> None:
    """A single text may be longer than the limit."""
    driver = steered_driver(llama, concepts=CONCEPTS, max_batch_tokens=512)
    if serving:
        driver.add(request("r", [5, 6], 200))
        driver.step()
    computed = count_computed_tokens(driver)
    read_lengths(driver, "a", [*[20] * 40, 300, *[20] * 10])
    results = list(finish(driver))
    assert len(results) == 1
    *others, second, longest = sorted(computed)
    assert longest == 300 + 1 + serving, "the long text is not computed alone"
    assert second == limit // 20 * 21 + serving, "as many texts as fit, each with its prompt"
    assert len(others) > 3


def test_a_long_text_is_cut_into_chunks(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS, max_batch_tokens=100)
    driver.add(request("r", [5, 6], 30))
    driver.step()
    computed = count_computed_tokens(driver)
    text = random_tokens(0, 350)
    check(driver.read(ReadTexts("a", "kind", [[5]], [text])), expect(llama, "kind", [[5]], [text]))
    assert computed == [100, 100, 100, 351 - 3 * 99 + 1]


@pytest.mark.parametrize("serving", [False, True])
def test_a_reading_and_a_training_share_the_limit(llama: PreTrainedModel, serving: bool) -> None:
    limit = MAX_TOKENS_BESIDE_REQUESTS if serving else MAX_TOKENS_IN_FLIGHT
    driver = steered_driver(llama, concepts=CONCEPTS, max_batch_tokens=20)  # each text takes several steps
    if serving:
        driver.add(request("r", [5, 6], 400))
    driver.engine.trainer.add(make_training("new", 40))
    for _ in range(3):
        driver.step()
    in_flight: list[tuple[int, int]] = []
    queue_work = driver.engine.measuring.queue_work

    def queue(serving: bool) -> None:
        queue_work(serving)
        in_flight.append(tokens_in_flight(driver))

    driver.engine.measuring.queue_work = queue
    read_lengths(driver, "a", [8] * 200)
    while driver.engine.measuring.text_reading.has_work:
        driver.step()
    trained, seen = np.array(in_flight).T
    assert max(trained + seen) <= limit
    assert len(seen) > 20
    assert np.median(trained) >= limit // 2 - 16, "the training starves"
    assert np.median(seen) >= limit // 2 - 8, "the reading starves"


def test_readings_end_in_the_order_in_which_they_came(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS)
    driver.add(request("r", [5, 6], 200))
    read_lengths(driver, "long", [30] * 20)
    read_lengths(driver, "short", [3])
    assert [result.request_id for result in finish(driver)] == ["long", "short"]


@pytest.mark.parametrize("steps_before", [0, 1, 2, 4])
@pytest.mark.parametrize("aborted", ["first", "second"])
def test_an_aborted_reading_frees_its_blocks_and_has_no_result(
    llama: PreTrainedModel, aborted: str, steps_before: int
) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS, max_batch_tokens=24)
    driver.add(request("healthy", [5, 6, 7], 25))
    read(driver, "first")
    read(driver, "second", "group")
    for _ in range(steps_before):
        assert driver.step().readings == []
    reader = driver.engine.steerer.reader("kind" if aborted == "first" else "group", 0).direction.key
    driver.engine.abort(aborted)
    left = [sequence for sequence in driver.engine.scheduler.sequences() if sequence.probe is not None]
    assert not any(sequence.readers[0].direction.key == reader for sequence in left)
    driver.engine.check_integrity()  # the blocks in use are those of the sequences that are left
    [result] = finish(driver)
    assert result.request_id != aborted
    check(result, expect(llama, "kind" if aborted == "second" else "group"))
    assert driver.results["healthy", 0].token_ids == generate(llama, [5, 6, 7], 25)
    check_nothing_is_left(driver)


def test_an_aborted_reading_has_no_result_even_if_it_is_computed(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS)
    read(driver, "a", "unknown")
    driver.engine.abort("a")
    assert driver.engine.is_idle
    assert driver.step().readings == []


def test_aborting_what_is_no_reading_does_nothing(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS)
    read(driver, "a")
    driver.engine.abort("b")
    driver.engine.abort("")
    check(next(finish(driver)), expect(llama, "kind"))
    driver.engine.abort("a")
    check(driver.read(ReadTexts("a", "kind", PROMPTS, TEXTS)), expect(llama, "kind"))


def test_readings_go_on_beside_probes_of_trainings(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS)
    read(driver, "a")
    probes = [Probe(prompt, text, captures=True) for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    feeder = feed(driver, *probes)
    [result] = finish(driver)
    check(result, expect(llama, "kind"))
    assert sorted(map(id, feeder.computed)) == sorted(map(id, probes))


def test_a_concept_that_is_removed_is_still_read_where_it_was_asked_for(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS, max_batch_tokens=16)
    read(driver, "a")
    driver.step()
    driver.engine.steerer.add("kind", make_direction(99))
    driver.step()
    driver.engine.steerer.remove("kind")
    [result] = finish(driver)
    check(result, expect(llama, "kind"))
    assert driver.read(ReadTexts("b", "kind", PROMPTS, TEXTS)) == ReadingsResult("b")


def test_the_engine_is_not_idle_until_it_has_reported_a_reading(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS, max_batch_tokens=16)
    assert driver.engine.is_idle
    for concept, steps in [("kind", range(2, 20)), ("unknown", range(1, 2))]:
        read(driver, "a", concept)
        assert not driver.engine.is_idle
        reports = []
        while not driver.engine.is_idle:
            reports.append(driver.step().readings)
        assert len(reports) in steps
        assert [len(readings) for readings in reports] == [0] * (len(reports) - 1) + [1]


def test_an_unknown_concept_gives_no_readings_and_no_detail(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS)
    assert driver.read(ReadTexts("a", "unknown", PROMPTS, TEXTS)) == ReadingsResult("a", None, "")


@pytest.mark.parametrize(
    ("config", "limit"), [({"context_length": 40}, 40), ({"num_blocks": 2}, 32), ({}, 512)], ids=str
)
def test_a_text_must_fit_the_context_and_the_cache_with_its_prompt(
    llama: PreTrainedModel, config: dict[str, int], limit: int
) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS, **config)
    prompt, text = random_tokens(0, 10), random_tokens(1, limit - 10)
    result = driver.read(ReadTexts("fits", "kind", [prompt], [text]))
    check(result, expect(llama, "kind", [prompt], [text]))
    result = driver.read(ReadTexts("long", "kind", [[5], prompt], [[5], [*text, 5]]))
    assert result == ReadingsResult("long", None, f"a text and its prompt must have at most {limit} tokens")
    assert driver.engine.is_idle


@pytest.mark.parametrize(
    ("prompts", "texts", "detail"),
    [
        ([], [], "none may be empty"),
        ([[5]], [], "as many prompts as texts"),
        ([[5]], [[6], [7]], "as many prompts as texts"),
        ([[]], [[6]], "none may be empty"),
        ([[5], [5]], [[6], []], "none may be empty"),
        ([[5]], [[6, VOCAB_SIZE]], "not in the model's vocabulary"),
        ([[-1]], [[6]], "not in the model's vocabulary"),
    ],
)
def test_wrong_texts_are_refused_and_nothing_else_fails(
    llama: PreTrainedModel, prompts: list[list[int]], texts: list[list[int]], detail: str
) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS)
    healthy = request("healthy", [5, 6, 7], 12)
    driver.add(healthy)
    driver.step()
    result = driver.read(ReadTexts("a", "kind", prompts, texts))
    assert result.readings is None
    assert not result.failed
    assert detail in result.detail
    assert driver.run()["healthy", 0].token_ids == generate(llama, [5, 6, 7], 12)


def test_an_output_that_is_not_finite_ends_only_its_own_reading(llama: PreTrainedModel) -> None:
    with torch.no_grad():
        llama.model.embed_tokens.weight[13] = float("nan")
    prompts, texts = [[5, 6, 7]] * 2, [[8, 9, 10], [8, *[13] * 9, 11]]
    healthy = request("healthy", [5, 6, 7], 12)
    driver = steered_driver(llama, concepts=CONCEPTS, block_size=4)
    driver.add(healthy)
    driver.engine.measuring.read_texts(ReadTexts("broken", "kind", prompts, texts))
    driver.engine.measuring.read_texts(ReadTexts("good", "kind", prompts[:1], texts[:1]))
    results = {result.request_id: result for result in finish(driver)}
    assert results.keys() == {"broken", "good"}
    detail = "the model's output for these texts is not finite"
    assert results["broken"] == ReadingsResult("broken", None, detail, failed=True)
    check(results["good"], expect(llama, "kind", prompts[:1], texts[:1]))
    assert len(driver.results["healthy", 0].token_ids) == 12
    assert not driver.failures
    result = driver.read(ReadTexts("after", "kind", prompts[:1], [texts[1][:1]]))
    check(result, expect(llama, "kind", prompts[:1], [texts[1][:1]]))


def test_texts_that_cannot_be_computed_end_only_their_own_reading(llama: PreTrainedModel) -> None:
    driver = steered_driver(llama, concepts=CONCEPTS)
    launch = driver.engine.runner.launch

    def fail(scheduled: list[Sequence]) -> Step:
        if any(17 in sequence.token_ids for sequence in scheduled):
            raise RuntimeError("the device is on fire")
        return launch(scheduled)

    driver.engine.runner.launch = fail
    prompts, texts = [[5, 6, 7]] * 3, [[8, 9, 10], [8, 17, 11], [17]]
    driver.add(request("healthy", [5, 6, 9], 12, logit_bias={17: -100.0}))
    driver.engine.measuring.read_texts(ReadTexts("broken", "kind", prompts, texts))
    driver.engine.measuring.read_texts(ReadTexts("good", "kind", prompts[:1], texts[:1]))
    results = {result.request_id: result for result in finish(driver)}
    assert results.keys() == {"broken", "good"}
    assert results["broken"] == ReadingsResult("broken", None, "the texts cannot be computed", failed=True)
    check(results["good"], expect(llama, "kind", prompts[:1], texts[:1]))
    assert len(driver.results["healthy", 0].token_ids) == 12
    assert driver.engine.block_manager.num_free_blocks == driver.engine.block_manager.num_blocks


def test_many_texts_are_read_in_their_order(llama: PreTrainedModel) -> None:
    texts = [random_tokens(i, 1 + i % 9) for i in range(60)]
    prompts = [random_tokens(i % 4, 3) for i in range(60)]
    driver = steered_driver(llama, concepts=CONCEPTS, max_running=7, max_batch_tokens=30)
    result = driver.read(ReadTexts("a", "group", prompts, texts))
    assert [len(numbers) for numbers in result.readings or []] == [len(text) for text in texts]
    check(result, expect(llama, "group", prompts, texts))
    assert not np.allclose(*[(result.readings or [])[i][0] for i in (8, 17)])

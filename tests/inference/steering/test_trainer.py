"""Trainings run one after the other, beside requests. Each ends with an update and leaves nothing behind."""

import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from inference.compute.attention import ForwardContext
from inference.compute.batch import Batch
from inference.interface.concepts import TrainConcept, TrainingState, TrainingUpdate
from inference.interface.protocol import StepReport
from inference.interface.requests import GenerationRequest, RefusalCode
from inference.scheduling.probe import MAX_TOKENS_BESIDE_REQUESTS, MAX_TOKENS_IN_FLIGHT, TrainingWork
from inference.steering.direction_files import DirectionFiles
from inference.steering.directions import Direction
from tests.inference.conftest import VOCAB_SIZE, Driver, build_driver, generate, make_model, request
from tests.inference.recorder import Recorder
from tests.inference.steering.conftest import (
    NEUTRAL,
    PROMPT,
    count_computed_tokens,
    make_texts,
    make_training,
    random_tokens,
    steered,
    train,
)

TRAINING, MEASURING = TrainingState.TRAINING, TrainingState.MEASURING
READY, FAILED = TrainingState.READY, TrainingState.FAILED


def check_nothing_is_left(driver: Driver) -> None:
    blocks = driver.engine.block_manager
    assert driver.engine.is_idle
    assert blocks.num_free_blocks == blocks.num_blocks
    assert list(driver.engine.scheduler.sequences()) == []


def make_command(positive: list[list[int]], negative: list[list[int]]) -> TrainConcept:
    return TrainConcept("kind", PROMPT, [PROMPT] * len(positive), positive, negative, NEUTRAL)


def check_alike(one: Direction, other: Direction) -> None:
    """They are equal but for rounding."""
    assert one.blocks == other.blocks
    np.testing.assert_allclose(one.units, other.units, rtol=0, atol=1e-4)
    numbers = ("lengths", "down_scale", "max_strength", "max_down_strength", "reading_range")
    for name in numbers:
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-3, abs=1e-4)


def steps(driver: Driver) -> Iterator[StepReport]:
    while not driver.engine.is_idle:
        yield driver.step()


def states(updates: list[TrainingUpdate], concept: str = "kind") -> list[TrainingState]:
    """The concept's states, without repetitions in a row."""
    of_one = [update.state for update in updates if update.concept == concept]
    return [state for i, state in enumerate(of_one) if i == 0 or state is not of_one[i - 1]]


def running_requests() -> list[GenerationRequest]:
    return [request(f"r{i}", random_tokens(50 + i, 10 + 5 * i), 30) for i in range(4)]


@cache
def expected_tokens() -> list[list[int]]:
    """The tokens that plain transformers generate for the running requests."""
    model = make_model("llama")
    return [generate(model, one.prompt_token_ids, 30) for one in running_requests()]


def check_running_requests(driver: Driver) -> None:
    tokens = [driver.results[one.request_id, 0].token_ids for one in running_requests()]
    assert tokens == expected_tokens()


def test_updates_come_in_order_and_progress_rises(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=64)
    updates = train(driver, make_training())
    assert states(updates) == [TRAINING, MEASURING, READY]
    progress = [update.progress for update in updates]
    assert progress == sorted(progress)
    assert progress[0] < 0.1
    assert progress[-1] == 1.0
    assert len(set(progress)) > 10
    assert all(update.report is None for update in updates[:-1])
    assert updates[-1].report is not None
    check_nothing_is_left(driver)


def test_requests_can_name_a_concept_from_the_measuring_state_on(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=64)
    driver.engine.trainer.add(make_training())
    seen = set()
    for number, report in enumerate(steps(driver)):
        [update] = report.training
        one = steered(request(f"r{number}", [5, 6], 1), "kind")
        refusal = driver.engine.add(one).refusal
        assert refusal is (RefusalCode.UNKNOWN_STEERING_CONCEPT if update.state is TRAINING else None)
        driver.engine.abort(one.request_id)
        seen.add(update.state)
    assert seen == {TRAINING, MEASURING, READY}


def test_decodes_stay_on_captured_steps_beside_a_training(llama: PreTrainedModel) -> None:
    recorder = Recorder()
    driver = build_driver(llama, capture=recorder)
    for one in running_requests():
        driver.engine.add(one)
    driver.step()  # all prompts
    driver.engine.trainer.add(make_training())
    counts = count_computed_tokens(driver)
    for number in range(1, 20):
        driver.step()
        assert recorder.num_replayed == number
    assert sum(count > len(running_requests()) for count in counts) > 10
    assert states(train(driver)) == [MEASURING, READY]
    check_running_requests(driver)


def make_expressive_model() -> PreTrainedModel:
    """Its layers change little and its head is its embedding, so steering favours tokens like the vector."""
    model = make_model("llama", tie_word_embeddings=True)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_a_concept_works_and_the_same_texts_with_shuffled_labels_do_not() -> None:
    """Four shuffles: each swaps positive and negative in half of the pairs."""
    driver = build_driver(make_expressive_model())
    right = make_training(count=16, seed=3)
    shuffles = []
    for seed in range(4):
        swapped = set(random.Random(seed).sample(range(16), 8))
        sides = zip(right.positive, right.negative, strict=True)
        pairs = [pair[::-1] if i in swapped else pair for i, pair in enumerate(sides)]
        positive, negative = (list(side) for side in zip(*pairs, strict=True))
        concept = f"shuffle {seed}"
        shuffles.append(msgspec.structs.replace(right, concept=concept, positive=positive, negative=negative))
    reports = {u.concept: u.report for u in train(driver, right, *shuffles) if u.state is READY}
    assert {concept: report.works for concept, report in reports.items() if report} == {
        "kind": True,
        "shuffle 0": False,
        "shuffle 1": False,
        "shuffle 2": False,
        "shuffle 3": False,
    }


@pytest.mark.parametrize("count", [1, 2, 7])
def test_too_few_examples_make_a_concept_that_is_not_judged(llama: PreTrainedModel, count: int) -> None:
    driver = build_driver(llama)
    updates = train(driver, make_training(count=count))
    assert states(updates)[0] is TRAINING
    assert states(updates)[-1] is READY
    report = updates[-1].report
    assert report is not None
    assert report.works is None
    assert report.num_examples == count
    assert driver.engine.add(steered(request("a", [5], 1), "kind")).refusal is None


@pytest.mark.parametrize("max_batch_tokens", [512, 37])
def test_positive_equal_to_negative_fails(llama: PreTrainedModel, max_batch_tokens: int) -> None:
    """Even if the two texts of a pair are computed in different batches."""
    driver = build_driver(llama, max_batch_tokens=max_batch_tokens)
    texts = make_texts(1, 12, range(10, 40), range(3, 40))
    updates = train(driver, make_command(texts, texts))
    assert states(updates) == [TRAINING, FAILED]
    assert updates[-1].detail == (
        "the model's activations are the same for the positive and the negative examples"
    )
    check_nothing_is_left(driver)


def test_the_same_texts_on_both_sides_never_work(llama: PreTrainedModel) -> None:
    driver = build_driver(make_expressive_model(), max_batch_tokens=37)
    texts = make_texts(1, 12, range(10, 40), range(3, 40))
    updates = train(driver, make_command(texts, texts[1:] + texts[:1]))
    report = updates[-1].report
    assert updates[-1].state is FAILED or (report is not None and report.works is False)


def test_output_that_is_not_finite_fails_only_its_own_training(llama: PreTrainedModel) -> None:
    with torch.no_grad():
        llama.model.embed_tokens.weight[15] = float("nan")
    driver = build_driver(llama)
    good = make_training("good")
    good = msgspec.structs.replace(good, positive=[[token + 7 for token in text] for text in good.negative])
    broken = make_training("broken")
    broken.positive[3].append(15)
    updates = train(driver, broken, good)
    assert states(updates, "broken")[-1] is FAILED
    assert updates[[u.state for u in updates].index(FAILED)].detail == (
        "the model's output for these examples is not finite"
    )
    assert states(updates, "good")[-1] is READY
    check_nothing_is_left(driver)


def test_a_bug_in_training_ends_no_request(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("inference.steering.effects.measure", fail)
    driver = build_driver(llama)
    for one in running_requests():
        driver.engine.add(one)
    updates = train(driver, make_training("kind"), make_training("rude", count=1))
    assert states(updates) == [TRAINING, FAILED]
    assert next(update.detail for update in updates if update.state is FAILED) == ""
    assert states(updates, "rude") == [TRAINING, READY]
    check_running_requests(driver)
    refused = driver.engine.add(steered(request("a", [5], 1), "kind"))
    assert refused.refusal is RefusalCode.UNKNOWN_STEERING_CONCEPT
    check_nothing_is_left(driver)


def fail_batches(driver: Driver, fails: Callable[[Batch], bool]) -> None:
    """Makes some forward passes fail at their end."""
    model = driver.engine.runner.model
    forward = model.forward

    def forward_and_fail(forward_context: ForwardContext, out: torch.Tensor | None = None) -> torch.Tensor:
        logits = forward(forward_context, out)
        if fails(forward_context.batch):
            raise RuntimeError("the device is on fire")
        return logits

    model.forward = forward_and_fail


@pytest.mark.parametrize("steps_before", [0, 1, 9])
def test_a_probe_that_cannot_be_computed_ends_only_its_training(
    llama: PreTrainedModel, steps_before: int
) -> None:
    driver = build_driver(llama, max_batch_tokens=64)
    driver.engine.trainer.add(make_training("kind"))
    driver.engine.trainer.add(make_training("rude", seed=2))
    for one in running_requests():
        driver.engine.add(one)
    updates = [update for _ in range(steps_before) for update in driver.step().training]
    owners = driver.engine.trainer._owners
    fail_batches(driver, lambda batch: any(owners[s.probe].concept == "kind" for s in batch.probes))
    updates += train(driver)
    assert states(updates) == [TRAINING, FAILED]
    assert next(update.detail for update in updates if update.state is FAILED) == ""
    assert states(updates, "rude") == [TRAINING, MEASURING, READY]
    check_running_requests(driver)
    check_nothing_is_left(driver)


@pytest.mark.parametrize("max_batch_tokens", [16, 64])
def test_failed_steps_that_are_repeated_do_not_change_the_direction(
    llama: PreTrainedModel, max_batch_tokens: int
) -> None:
    vectors = []
    for fails in (False, True):
        driver = build_driver(llama, max_batch_tokens=max_batch_tokens)
        if fails:
            fail_batches(driver, lambda batch: len(batch.probes) > 1)
        assert states(train(driver, make_training()))[-1] is READY
        vectors.append(driver.engine.steerer.get("kind").vectors(1.0))
    np.testing.assert_allclose(*vectors, rtol=1e-3, atol=1e-3 * np.abs(vectors[0]).max())


def test_a_concept_trained_by_another_process_can_be_used(llama: PreTrainedModel, tmp_path: Path) -> None:
    here, there = (build_driver(make_model("llama"), DirectionFiles(tmp_path)) for _ in range(2))
    one = steered(request("a", [5, 6, 7], 12), "kind")
    assert here.engine.add(one).refusal is RefusalCode.UNKNOWN_STEERING_CONCEPT
    train(there, make_training())
    tokens = here.run(one)["a", 0].token_ids
    assert tokens == there.run(one)["a", 0].token_ids
    assert tokens != generate(make_model("llama"), [5, 6, 7], 12)
    there.engine.trainer.forget("kind")
    assert there.engine.add(one).refusal is RefusalCode.UNKNOWN_STEERING_CONCEPT


def test_background_work_waits_while_there_are_requests(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=64)
    computed = count_computed_tokens(driver)
    for one in running_requests():
        driver.engine.add(one)
    driver.engine.trainer.add(make_training(background=True))
    while any(result.finish_reason is None for result in driver.results.values()) or not driver.results:
        [*updates] = driver.step().training
        assert all(update.progress == 0.0 for update in updates)
    expected = sum(len(one.prompt_token_ids) + 30 - 1 for one in running_requests())
    assert sum(computed) == expected
    assert states(train(driver)) == [TRAINING, MEASURING, READY]


def test_background_work_that_a_request_interrupts_goes_on_afterwards(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=64)
    driver.engine.trainer.add(make_training(background=True))
    updates = []
    for _ in range(4):
        updates += driver.step().training
    before = updates[-1].progress
    assert before > 0
    driver.engine.add(request("a", random_tokens(0, 10), 40))
    for _ in range(6):  # what was out already comes back
        updates += driver.step().training
    paused = updates[-1].progress
    while driver.engine._sequences:
        assert driver.step().training == []
    updates += train(driver)
    assert 0 < before <= paused < 1
    assert states(updates) == [TRAINING, MEASURING, READY]
    assert driver.results["a", 0].token_ids == generate(llama, random_tokens(0, 10), 40)


def test_a_prioritized_training_does_not_wait_for_requests(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    driver.engine.add(request("a", [5, 6], 400))
    driver.engine.trainer.add(make_training(background=True))
    for _ in range(3):
        driver.step()
    driver.engine.trainer.prioritize("kind")
    driver.engine.trainer.prioritize("nobody")
    updates = []
    while not updates or updates[-1].state is not READY:
        updates += driver.step().training
    assert driver.results["a", 0].finish_reason is None


def test_a_foreground_training_comes_before_a_background_training(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    updates = train(driver, make_training("later", background=True), make_training("now"))
    ready = [update.concept for update in updates if update.state is READY]
    assert ready == ["now", "later"]


def test_two_trainings_at_once_give_the_results_of_two_in_a_row(tmp_path: Path) -> None:
    commands = [make_training("kind", seed=1), make_training("rude", seed=2)]
    together = build_driver(make_model("llama"), DirectionFiles(tmp_path / "together"))
    updates = train(together, *commands)
    assert states(updates, "kind") == states(updates, "rude") == [TRAINING, MEASURING, READY]
    single = build_driver(make_model("llama"), DirectionFiles(tmp_path / "single"))
    for command in commands:
        train(single, command)
        pair = [DirectionFiles(tmp_path / name).load(command.concept) for name in ("together", "single")]
        assert pair[0] is not None
        assert pair[1] is not None
        (one, report), (other, expected) = pair
        check_alike(one, other)
        assert (report.works, report.num_held_out) == (expected.works, expected.num_held_out)
        assert [e.shift for e in report.effects] == pytest.approx(
            [e.shift for e in expected.effects], abs=1e-3
        )


def test_a_model_is_calibrated_once(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Even if a second training starts before the first one has calibrated the model."""
    driver = build_driver(llama, DirectionFiles(tmp_path), max_batch_tokens=40)
    # The other neutral texts would give a different calibration.
    other = msgspec.structs.replace(make_training("now"), neutral=make_texts(9, 5, range(70, 199)))
    driver.engine.trainer.add(make_training("later", background=True))
    driver.step()
    driver.engine.trainer.add(other)
    calibrations = set()
    for _ in steps(driver):
        calibrations |= {driver.engine.steerer.calibration} - {None}
    assert len(calibrations) == 1
    assert DirectionFiles(tmp_path).load_calibration() in calibrations


def test_a_trained_concept_is_ready_at_once(llama: PreTrainedModel) -> None:
    driver = build_driver(llama)
    first = train(driver, make_training())
    computed = count_computed_tokens(driver)
    assert train(driver, make_training()) == [first[-1]]
    assert computed == []


def test_a_running_training_is_not_started_again(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=64)
    driver.engine.trainer.add(make_training())
    updates = [update for _ in range(5) for update in driver.step().training]
    updates += train(driver, make_training())
    progress = [update.progress for update in updates]
    assert progress == sorted(progress)
    assert [update.state for update in updates].count(READY) == 1


@pytest.mark.parametrize("steps_before", [0, 1, 5, 13])
def test_a_forgotten_training_gives_no_more_updates(
    llama: PreTrainedModel, tmp_path: Path, steps_before: int
) -> None:
    driver = build_driver(llama, DirectionFiles(tmp_path), max_batch_tokens=64)
    driver.engine.trainer.add(make_training())
    for _ in range(steps_before):
        assert driver.step().training[-1].state is not READY
    driver.engine.trainer.forget("kind")
    assert train(driver) == []
    check_nothing_is_left(driver)
    refused = driver.engine.add(steered(request("a", [5], 1), "kind"))
    assert refused.refusal is RefusalCode.UNKNOWN_STEERING_CONCEPT
    assert not list(tmp_path.glob("kind*"))
    assert states(train(driver, make_training())) == [TRAINING, MEASURING, READY]


@pytest.mark.parametrize("steps_before", [1, 5, 9])
def test_a_concept_added_again_after_forget_is_trained_from_scratch(
    llama: PreTrainedModel, steps_before: int
) -> None:
    """Probes of the first training come back while the second one runs."""
    driver = build_driver(llama, max_batch_tokens=64)
    driver.engine.trainer.add(make_training(seed=1))
    for _ in range(steps_before):
        driver.step()
    driver.engine.trainer.forget("kind")
    updates = train(driver, make_training(seed=2))
    assert states(updates) == [TRAINING, MEASURING, READY]
    progress = [update.progress for update in updates]
    assert progress == sorted(progress)
    expected = train(build_driver(llama), make_training(seed=2))[-1].report
    report = updates[-1].report
    assert report is not None
    assert expected is not None
    assert report.agreement == pytest.approx(expected.agreement, abs=1e-4)


def test_a_forgotten_concept_is_deleted(llama: PreTrainedModel, tmp_path: Path) -> None:
    driver = build_driver(llama, DirectionFiles(tmp_path))
    train(driver, make_training())
    driver.engine.add(steered(request("a", [5, 6], 20), "kind"))
    driver.step()
    driver.engine.trainer.forget("kind")
    refused = driver.engine.add(steered(request("b", [5], 1), "kind"))
    assert refused.refusal is RefusalCode.UNKNOWN_STEERING_CONCEPT
    assert len(driver.run()["a", 0].token_ids) == 20
    assert states(train(driver, make_training())) == [TRAINING, MEASURING, READY]
    check_nothing_is_left(driver)


def test_after_a_restart_a_concept_is_ready_at_once_and_steers_bit_for_bit(tmp_path: Path) -> None:
    one = steered(request("a", random_tokens(0, 20), 16, top_logprobs=3), "kind", "rude", strength=0.7)
    before = build_driver(make_model("llama"), DirectionFiles(tmp_path), max_batch_tokens=40)
    commands = [make_training("kind", seed=1), make_training("rude", seed=2)]
    reports = {u.concept: u for u in train(before, *commands) if u.state is READY}
    expected = before.run(one)["a", 0].events

    after = build_driver(make_model("llama"), DirectionFiles(tmp_path))
    computed = count_computed_tokens(after)
    assert train(after, *commands) == [reports["kind"], reports["rude"]]
    assert computed == []
    assert after.run(one)["a", 0].events == expected


def test_a_restart_does_not_calibrate_the_model_again(tmp_path: Path) -> None:
    totals = []
    for concept in ("kind", "rude"):
        driver = build_driver(make_model("llama"), DirectionFiles(tmp_path))
        computed = count_computed_tokens(driver)
        train(driver, msgspec.structs.replace(make_training(seed=1), concept=concept))
        totals.append((sum(computed), driver.engine.steerer.calibration))
    assert totals[0][0] > totals[1][0]
    assert totals[0][1] == totals[1][1]


def of_no_blocks(path: Path) -> None:
    change_tensor(path, lambda tensor: tensor[:0])


def of_other_width(path: Path) -> None:
    change_tensor(path, lambda tensor: np.concatenate([tensor, tensor], axis=1))


def flat(path: Path) -> None:
    change_tensor(path, lambda tensor: tensor.reshape(-1))


def not_finite(path: Path) -> None:
    change_tensor(path, lambda tensor: np.where(tensor > 0, np.float32(np.nan), tensor))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def without_metadata(path: Path) -> None:
    save_file(load_file(path), path)


def change_tensor(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    content = path.read_bytes()
    header = msgspec.json.decode(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensor = change(load_file(path)["units"])
    save_file({"units": np.ascontiguousarray(tensor)}, path, header["__metadata__"])


@pytest.mark.parametrize(
    "spoil",
    [of_no_blocks, of_other_width, flat, not_finite, truncated, without_metadata],
)
def test_an_unusable_direction_is_trained_again(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    first = build_driver(make_model("llama"), DirectionFiles(tmp_path))
    expected = train(first, make_training(count=2))[-1].report
    spoil(tmp_path / "kind.safetensors")
    driver = build_driver(make_model("llama"), DirectionFiles(tmp_path))
    updates = train(driver, make_training(count=2))
    assert states(updates) == [TRAINING, MEASURING, READY]
    assert updates[-1].report == expected
    again = build_driver(make_model("llama"), DirectionFiles(tmp_path))
    assert states(train(again, make_training(count=2))) == [READY]


@pytest.mark.parametrize(
    "content",
    [
        b'{"norms": [1.0], "cap": 0.5}',
        b'{"norms": [1.0, 2.0, 3.0, 4.0], "cap": 0.5}',
        b"noise",
    ],
)
def test_an_unusable_calibration_is_measured_again(tmp_path: Path, content: bytes) -> None:
    first = build_driver(make_model("llama"), DirectionFiles(tmp_path))
    train(first, make_training(count=2))
    expected = first.engine.steerer.calibration
    (tmp_path / "calibration.json").write_bytes(content)
    driver = build_driver(make_model("llama"), DirectionFiles(tmp_path))
    train(driver, make_training(count=2))
    train(driver, make_training("rude", count=2))
    assert driver.engine.steerer.calibration == expected


@pytest.mark.parametrize("max_batch_tokens", [16, 512])
def test_training_does_not_change_running_requests(llama: PreTrainedModel, max_batch_tokens: int) -> None:
    driver = build_driver(llama, max_batch_tokens=max_batch_tokens)
    for one in running_requests():
        driver.engine.add(one)
    driver.engine.trainer.add(make_training())
    driver.run()
    check_running_requests(driver)


def test_running_requests_do_not_change_training(llama: PreTrainedModel, tmp_path: Path) -> None:
    """Even if requests preempt the probes and take their blocks."""
    command = make_training(lengths=range(20, 40))
    alone = build_driver(llama, DirectionFiles(tmp_path / "alone"))
    train(alone, command)
    config = {"num_blocks": 14, "block_size": 8, "max_batch_tokens": 24}
    driver = build_driver(llama, DirectionFiles(tmp_path / "beside"), **config)
    driver.engine.trainer.add(command)
    for number, _ in enumerate(steps(driver)):
        if number < 200 and number % 5 == 2:
            driver.engine.add(request(f"r{number}", random_tokens(number, 30), 8))
    assert driver.engine.scheduler.num_preemptions > 10
    pair = [DirectionFiles(tmp_path / name).load("kind") for name in ("alone", "beside")]
    assert pair[0] is not None
    assert pair[1] is not None
    check_alike(pair[1][0], pair[0][0])
    check_nothing_is_left(driver)


@pytest.mark.parametrize(
    ("serving", "limit"), [(False, MAX_TOKENS_IN_FLIGHT), (True, MAX_TOKENS_BESIDE_REQUESTS)]
)
def test_the_number_of_tokens_in_flight_is_limited(llama: PreTrainedModel, serving: bool, limit: int) -> None:
    """A single text may be longer than the limit. Each text takes several steps here."""
    driver = build_driver(llama, max_batch_tokens=50)
    texts = make_texts(1, 6, range(10, 40), range(1, 150))
    texts[4] = random_tokens(0, 300)
    command = make_command(texts, make_texts(2, 6, range(40, 70), range(1, 150)))
    out: set[TrainingWork] = set()
    most = []
    next_work, complete = driver.engine.trainer.next_work, driver.engine.trainer.complete

    def count_out(serving: bool, room: int) -> list[TrainingWork]:
        taken = next_work(serving, room)
        out.update(taken)
        most.append(sorted(work.num_tokens for work in out))
        return taken

    def count_back(work: TrainingWork) -> None:
        out.remove(work)
        complete(work)

    driver.engine.trainer.next_work, driver.engine.trainer.complete = count_out, count_back
    number = 0
    driver.engine.trainer.add(command)
    while not driver.engine.trainer.is_idle:
        if serving and not driver.engine._sequences:
            driver.engine.add(request(f"r{number}", [5, 6], 50))
            number += 1
        driver.step()
    assert all(sum(lengths) <= limit or len(lengths) == 1 for lengths in most)
    assert max(map(sum, most)) == 300
    assert sum(sum(lengths) > limit / 2 for lengths in most) > 5, "the limit is rarely used"


def test_training_takes_no_slot_of_a_request(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_running=2, max_queued=0, max_batch_tokens=16)
    driver.engine.trainer.add(make_training())
    for _ in range(3):
        driver.step()
    assert driver.engine.add(request("a", [5, 6], 20, n=2)).refusal is None
    assert driver.engine.add(request("b", [5, 6], 20)).refusal is RefusalCode.QUEUE_FULL
    assert len(driver.run()) == 2


def without(field: str) -> TrainConcept:
    return msgspec.structs.replace(make_training(), **{field: []})


def with_text(text: list[int]) -> TrainConcept:
    command = make_training()
    command.positive[3] = text
    return command


@pytest.mark.parametrize(
    "command",
    [
        with_text([5] * 400),
        with_text([]),
        with_text([VOCAB_SIZE]),
        with_text([-1]),
        without("prompt_token_ids"),
        without("positive"),
        without("negative"),
        without("neutral"),
        msgspec.structs.replace(make_training(), positive=[], negative=[], pair_prompts=[]),
        without("pair_prompts"),
        msgspec.structs.replace(make_training(), pair_prompts=[[]] * 8),
        msgspec.structs.replace(make_training(), pair_prompts=[[VOCAB_SIZE]] * 8),
        msgspec.structs.replace(make_training(), questions=[[5], []]),
        msgspec.structs.replace(make_training(), questions=[[-1]]),
        msgspec.structs.replace(make_training(), groups=[0, 1]),
        msgspec.structs.replace(make_training(), groups=[-1] * 8),
    ],
)
def test_an_invalid_command_fails_and_does_not_change_running_requests(
    llama: PreTrainedModel, command: TrainConcept
) -> None:
    driver = build_driver(llama, num_blocks=30, block_size=8)
    for one in running_requests():
        driver.engine.add(one)
    assert states(train(driver, command))[-1] is FAILED
    check_running_requests(driver)
    check_nothing_is_left(driver)


@pytest.mark.parametrize("spare", [0, 1])
def test_a_training_with_a_text_as_long_as_the_context_ends(llama: PreTrainedModel, spare: int) -> None:
    driver = build_driver(llama, num_blocks=10, block_size=8)
    room = driver.engine.context_length - len(PROMPT)
    assert room + len(PROMPT) == 10 * 8
    updates = train(driver, with_text(random_tokens(0, room - spare)))
    assert states(updates)[-1] in (READY, FAILED)
    check_nothing_is_left(driver)


QUESTIONS = make_texts(7, 3, range(70, VOCAB_SIZE), range(4, 9))


def with_questions(concept: str = "kind", seed: int = 1) -> TrainConcept:
    return msgspec.structs.replace(make_training(concept, seed=seed), questions=QUESTIONS)


def test_the_samples_are_what_the_model_answers(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=64)
    report = train(driver, with_questions())[-1].report
    assert report is not None
    assert [answer.strength for answer in report.answers] == [-1.0, 0.0, 1.0]
    plain = [sample for sample in report.samples if sample.strength == 0]
    assert [sample.question for sample in plain] == [0, 1]
    for sample in plain:
        assert sample.token_ids == generate(llama, QUESTIONS[sample.question], 40)
    steered_answers = driver.run(
        *(
            steered(request(f"{strength:g} {i}", QUESTIONS[i], 40), "kind", strength=strength)
            for strength in (-1.0, 1.0)
            for i in range(2)
        )
    )
    for sample in report.samples:
        if sample.strength:
            result = steered_answers[f"{sample.strength:g} {sample.question}", 0]
            assert sample.token_ids == result.token_ids
    check_nothing_is_left(driver)


def test_answers_do_not_change_running_requests(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=16)
    for one in running_requests():
        driver.engine.add(one)
    updates = train(driver, with_questions())
    assert states(updates) == [TRAINING, MEASURING, READY]
    check_running_requests(driver)
    check_nothing_is_left(driver)


def test_an_answer_that_cannot_be_computed_ends_only_its_training(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=64)
    driver.engine.trainer.add(with_questions("kind"))
    driver.engine.trainer.add(with_questions("rude", seed=2))
    for one in running_requests():
        driver.engine.add(one)
    owners = driver.engine.trainer._owners

    def answers_of_kind(batch: Batch) -> bool:
        answers = [sequence.answer for sequence in batch.sampling if sequence.answer]
        return any(owners[answer].concept == "kind" for answer in answers)

    fail_batches(driver, answers_of_kind)
    updates = train(driver)
    assert states(updates) == [TRAINING, FAILED]
    assert states(updates, "rude") == [TRAINING, MEASURING, READY]
    check_running_requests(driver)
    check_nothing_is_left(driver)


def test_a_forgotten_training_drops_its_answers(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, max_batch_tokens=64)
    driver.engine.trainer.add(with_questions())
    while not any(sequence.answer for sequence in driver.engine.scheduler.sequences()):
        driver.step()
    driver.engine.trainer.forget("kind")
    assert train(driver) == []
    check_nothing_is_left(driver)


def test_a_failed_training_whose_result_another_process_wrote_meanwhile_can_be_requested(
    tmp_path: Path,
) -> None:
    here = build_driver(make_model("llama"), DirectionFiles(tmp_path), max_batch_tokens=64)
    here.engine.trainer.add(make_training())
    here.step()
    train(build_driver(make_model("llama"), DirectionFiles(tmp_path)), make_training())
    one = steered(request("a", [5, 6], 3), "kind")
    here.engine.add(one)
    fail_batches(here, lambda batch: bool(batch.probes))
    updates = train(here)
    assert states(updates)[-1] is FAILED
    again = steered(request("b", [5, 6], 3), "kind")
    assert here.engine.add(again).refusal is None
    assert len(here.run()["b", 0].token_ids) == 3


def test_long_prompts_and_long_texts_of_different_pairs_fit(llama: PreTrainedModel) -> None:
    driver = build_driver(llama, num_blocks=10, block_size=8)
    command = make_training(count=4)
    command.pair_prompts[0] = random_tokens(1, 60)
    command.positive[1] = random_tokens(2, 60)
    assert states(train(driver, command))[-1] is READY

"""Concepts are created, used and deleted concurrently, and no caller waits forever."""

import asyncio
import gc
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import pytest

from app.concepts.concept import Concept, Example, digest_of
from app.concepts.concepts import Concepts
from app.concepts.steerable import SteerableModel
from app.concepts.storage import LocalStorage
from app.concepts.store import ConceptStore
from app.concepts.trainings import Trainings
from app.concepts.uses import UsedConcept
from app.concepts.vectors.imported import ServedModel
from app.errors import ApiError, EngineUnavailable, ErrorCode, InvalidRequest
from app.schemas.concepts import ConceptDetail, ConceptList, ConceptOnModel, ConceptState, full_id
from app.schemas.reports import ConceptReport
from app.settings import LimitSettings
from app.telemetry.metrics import Metrics
from inference.interface.concepts import ConceptReport as WorkerReport
from inference.interface.concepts import TrainConcept, TrainingState, TrainingUpdate
from tests.app.contract.support import until
from tests.app.fakes import (
    HANG,
    REPORT,
    FakeEngine,
    TrainingStep,
    model_info,
    pausing,
    train_badly,
    train_well,
)


def concept(name: str = "kind", text: str = "Lovely.", shipped: bool = False) -> Concept:
    return Concept(full_id(name), "Kind", (Example(text, "Awful."),), 1_700_000_000, shipped)


def encode(concept: Concept) -> TrainConcept:
    if concept.examples[0].positive == "too long":
        raise InvalidRequest("examples[0].positive has too many tokens", "examples[0].positive")
    return TrainConcept(concept.digest, [1], [[1]], [[2]], [[3]], [[4]])


def present(report: WorkerReport) -> ConceptReport:
    """The report without its samples, whose texts need a tokenizer."""
    return ConceptReport(**{**msgspec.structs.asdict(report), "samples": []})


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(model_info(Path(), 300))


@pytest.fixture
def store(tmp_path: Path) -> ConceptStore:
    return ConceptStore(tmp_path / "shipped", tmp_path / "created")


class OneModel:
    """The registry of a server with one model, so that calls need not name it."""

    def __init__(self, concepts: Concepts, model: SteerableModel) -> None:
        self._concepts, self._model = concepts, model
        concepts.add_model(model)
        self.find, self.delete = concepts.find, concepts.delete
        self.adopt, self.discard, self.keep_only = concepts.adopt, concepts.discard, concepts.keep_only

    def overview(self) -> ConceptList:
        return self._concepts.overview([self._model])

    def describe(self, name: str) -> ConceptDetail:
        return self._concepts.describe(name, [self._model])

    async def create(self, wanted: Concept) -> ConceptDetail:
        return await self._concepts.create(wanted, [self._model])

    async def make_usable(self, used: Sequence[UsedConcept]) -> None:
        await self._concepts.make_usable(used, self._model)

    def refusal_error(self, used: Sequence[UsedConcept]) -> ApiError:
        return self._concepts.refusal_error(used, self._model)

    def prepare(self, train: bool = True) -> None:
        self._concepts.prepare(self._model, train)


Open = Callable[..., OneModel]


def model_of(
    name: str,
    engine: FakeEngine,
    metrics: Metrics,
    encode: Callable[[Concept], TrainConcept] = encode,
) -> SteerableModel:
    identity = ServedModel.of(name, engine.model)
    return SteerableModel(identity, Trainings(name, engine, encode, metrics), present)


@pytest.fixture
def open_concepts(engine: FakeEngine, store: ConceptStore) -> Open:
    """Builds the registry as after a start, with the concepts in the store."""

    def build(limit: int = 10, encode: Callable[[Concept], TrainConcept] = encode) -> OneModel:
        metrics = Metrics()
        concepts = Concepts(LocalStorage(store), metrics, LimitSettings(max_concepts=limit))
        return OneModel(concepts, model_of("tiny", engine, metrics, encode))

    return build


@pytest.fixture
def concepts(open_concepts: Open) -> Concepts:
    return open_concepts()


def state_of(concepts: OneModel, name: str = "kind") -> ConceptState:
    return concepts.describe(name).state


def ids(concepts: OneModel) -> list[str]:
    return [card.id for card in concepts.overview().data]


def stored(store: ConceptStore) -> list[str]:
    return [concept.id for concept in store.read()]


async def usable(concepts: OneModel, *names: str) -> None:
    await concepts.make_usable(concepts.find(names))


async def code_of(task: "asyncio.Task[object]") -> ErrorCode:
    with pytest.raises(ApiError) as raised:
        await asyncio.wait_for(task, 5)
    return raised.value.code


def ship(directory: Path, name: str, text: str = "Lovely.") -> None:
    (directory / "shipped").mkdir(exist_ok=True)
    (directory / "shipped" / f"{name}.yaml").write_text(
        f"name: {name}\nexamples: [{{positive: {text}, negative: Awful.}}]"
    )


async def test_a_created_concept_is_ready_and_stored(concepts: OneModel, store: ConceptStore) -> None:
    made = await concepts.create(concept())
    assert made == concepts.describe("kind")
    assert made == ConceptDetail(
        id="_worker/kind",
        created=1_700_000_000,
        description="Kind",
        num_examples=1,
        imported=False,
        shipped=False,
        state=ConceptState.READY,
        progress=1.0,
        report=present(REPORT),
        error=None,
    )
    assert store.load() == [concept()]


async def test_the_file_is_written_before_the_answer(
    concepts: OneModel, store: ConceptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    write = store.write
    monkeypatch.setattr(store, "write", lambda concept: (write(concept), order.append("written")))
    await concepts.create(concept())
    order.append("answered")
    assert order == ["written", "answered"]


async def test_a_concept_is_visible_while_it_is_created(
    concepts: OneModel, engine: FakeEngine, store: ConceptStore
) -> None:
    go_on = asyncio.Event()
    engine.training = pausing(go_on)
    creating = asyncio.create_task(concepts.create(concept()))
    await until(lambda: ids(concepts) and concepts.describe("kind").progress)
    assert (state_of(concepts), concepts.describe("kind").progress) == (ConceptState.TRAINING, 0.5)
    assert stored(store) == []
    go_on.set()
    assert (await creating).state is ConceptState.READY


async def test_concurrent_creations_of_the_same_concept_train_it_once(
    concepts: OneModel, engine: FakeEngine
) -> None:
    made = await asyncio.gather(*(concepts.create(concept()) for _ in range(5)))
    assert all(answer == made[0] for answer in made)
    assert len(engine.trainings) == 1


async def test_creating_a_stored_concept_again_returns_it(open_concepts: Open, engine: FakeEngine) -> None:
    first = await open_concepts().create(concept())
    later = Concept("_worker/kind", "another description", concept().examples, created=5)
    assert await open_concepts().create(later) == first


@pytest.mark.parametrize("ended", [True, False])
async def test_a_name_in_use_with_other_examples_is_a_conflict(
    concepts: OneModel, engine: FakeEngine, ended: bool
) -> None:
    engine.training = train_well if ended else pausing(HANG)
    creating = asyncio.create_task(concepts.create(concept()))
    await until(lambda: (ended and creating.done()) or engine.in_training)
    assert await code_of(asyncio.create_task(concepts.create(concept(text="Nice.")))) is ErrorCode.CONFLICT
    assert len(engine.trainings) == 1


async def test_a_shipped_concepts_name_is_taken_unless_the_examples_are_the_same(
    open_concepts: Open, tmp_path: Path
) -> None:
    ship(tmp_path, "kind")
    concepts = open_concepts()
    assert (await concepts.create(concept())).shipped
    assert await code_of(asyncio.create_task(concepts.create(concept(text="Nice.")))) is ErrorCode.CONFLICT
    assert not (tmp_path / "created").exists()


async def test_a_digest_of_other_examples_as_the_name_is_refused(concepts: OneModel) -> None:
    digest = concept().digest
    assert (await concepts.create(concept(digest))).id == f"_worker/{digest}"
    with pytest.raises(InvalidRequest) as refused:
        await concepts.create(concept("0f" * 32))
    assert refused.value.param == "name"
    assert ids(concepts) == [f"_worker/{digest}"]


@pytest.mark.parametrize(
    ("text", "training", "reason"),
    [("Lovely.", train_badly, "differ in nothing"), ("too long", train_well, "too many tokens")],
)
async def test_a_concept_that_cannot_be_trained_is_not_kept(
    concepts: OneModel, engine: FakeEngine, store: ConceptStore, text: str, training: object, reason: str
) -> None:
    engine.training = training  # type: ignore[assignment]
    creating = [asyncio.create_task(concepts.create(concept(text=text))) for _ in range(2)]
    for task in creating:
        with pytest.raises(InvalidRequest, match=reason):
            await task
    assert (ids(concepts), stored(store)) == ([], [])
    engine.training = train_well
    assert (await concepts.create(concept(text="Nice."))).state is ConceptState.READY


async def test_a_fault_in_training_is_internal_and_keeps_nothing(
    concepts: OneModel, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.training = pausing(RuntimeError("CUDA error"))
    with caplog.at_level(logging.ERROR):
        assert await code_of(asyncio.create_task(concepts.create(concept()))) is ErrorCode.INTERNAL
    assert "CUDA error" in caplog.text
    assert ids(concepts) == []


async def test_the_number_of_created_concepts_is_limited(open_concepts: Open, tmp_path: Path) -> None:
    ship(tmp_path, "shipped")
    concepts = open_concepts(limit=2)
    await asyncio.gather(concepts.create(concept("a")), concepts.create(concept("b")))
    third = asyncio.create_task(concepts.create(concept("c")))
    assert await code_of(third) is ErrorCode.CONFLICT
    await concepts.create(concept("b"))
    await concepts.delete("a")
    await concepts.create(concept("c"))


async def test_a_creation_goes_on_when_nobody_waits(concepts: OneModel, engine: FakeEngine) -> None:
    go_on = asyncio.Event()
    engine.training = pausing(go_on)
    creating = asyncio.create_task(concepts.create(concept()))
    await until(lambda: engine.in_training)
    creating.cancel()
    await asyncio.wait({creating})
    gc.collect()
    go_on.set()
    await until(lambda: state_of(concepts) is ConceptState.READY)


async def test_a_concept_that_cannot_be_written_is_not_kept(
    concepts: OneModel,
    engine: FakeEngine,
    store: ConceptStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "/var/lib/secret")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(os, "fsync", fail)
        with pytest.raises(ApiError, match=r"^the concept cannot be stored$") as refused:
            await concepts.create(concept())
    assert refused.value.code is ErrorCode.UNAVAILABLE
    assert "No space left" in caplog.text
    assert (ids(concepts), stored(store)) == ([], [])
    assert engine.forgotten == [concept().digest]
    assert (await concepts.create(concept())).state is ConceptState.READY


async def test_a_creation_fails_if_the_engine_is_lost(concepts: OneModel, engine: FakeEngine) -> None:
    engine.training = pausing(EngineUnavailable())
    assert await code_of(asyncio.create_task(concepts.create(concept()))) is ErrorCode.UNAVAILABLE
    engine.available = False
    assert await code_of(asyncio.create_task(concepts.create(concept()))) is ErrorCode.UNAVAILABLE
    assert ids(concepts) == []


async def test_a_creation_goes_on_once_a_lost_engine_is_back(
    concepts: OneModel, engine: FakeEngine, store: ConceptStore
) -> None:
    engine.restored = asyncio.Event()
    engine.training = pausing(EngineUnavailable())
    creating = [asyncio.create_task(concepts.create(concept())) for _ in range(2)]
    for task in creating:
        assert await code_of(task) is ErrorCode.UNAVAILABLE
    assert ids(concepts) == ["_worker/kind"]
    assert (state_of(concepts), stored(store)) == (ConceptState.UNTRAINED, [])
    again = asyncio.create_task(concepts.create(concept("other", "Nice.")))
    assert await code_of(again) is ErrorCode.UNAVAILABLE
    await concepts.delete("other")
    engine.training = train_well
    engine.restored.set()
    await until(lambda: stored(store) == ["_worker/kind"])
    assert (await concepts.create(concept())).state is ConceptState.READY
    assert len(engine.trainings) == 3


async def test_a_creation_that_crashes_the_engine_each_time_is_given_up(
    concepts: OneModel, engine: FakeEngine, store: ConceptStore
) -> None:
    engine.restored = asyncio.Event()
    engine.restored.set()
    engine.training = pausing(EngineUnavailable())
    assert await code_of(asyncio.create_task(concepts.create(concept()))) is ErrorCode.UNAVAILABLE
    await until(lambda: ids(concepts) == [])
    assert len(engine.trainings) == 3
    assert stored(store) == []
    engine.training = train_well
    assert (await concepts.create(concept())).state is ConceptState.READY


async def test_background_training_goes_on_once_a_lost_engine_is_back(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore
) -> None:
    store.write(concept("a", "A."))
    store.write(concept("b"))
    concepts = open_concepts()
    engine.restored = asyncio.Event()
    engine.training = pausing(EngineUnavailable())
    concepts.prepare()
    await until(lambda: engine.trainings and not engine.in_training)
    engine.training = train_well
    await asyncio.sleep(0.01)
    assert [state_of(concepts, name) for name in "ab"] == [ConceptState.UNTRAINED] * 2
    engine.restored.set()
    await until(lambda: state_of(concepts, "b") is ConceptState.READY)
    assert state_of(concepts, "a") is ConceptState.READY


async def test_a_stored_concept_survives_the_loss_of_the_engine(
    open_concepts: Open, engine: FakeEngine
) -> None:
    await open_concepts().create(concept())
    concepts = open_concepts()
    engine.available = False
    for _ in range(2):
        assert await code_of(asyncio.create_task(usable(concepts, "kind"))) is ErrorCode.UNAVAILABLE
        assert await code_of(asyncio.create_task(concepts.create(concept()))) is ErrorCode.UNAVAILABLE
    assert state_of(concepts) is ConceptState.UNTRAINED
    engine.available = True
    await usable(concepts, "kind")


async def test_a_deleted_concept_is_gone(concepts: OneModel, engine: FakeEngine, store: ConceptStore) -> None:
    await concepts.create(concept())
    await concepts.delete("_worker/kind")
    assert (ids(concepts), stored(store), engine.forgotten) == ([], [], [concept().digest])
    for act in (concepts.delete("kind"), usable(concepts, "kind")):
        assert await code_of(asyncio.create_task(act)) is ErrorCode.UNKNOWN_STEERING_CONCEPT


async def test_the_engine_keeps_a_vector_that_another_concept_shares(
    concepts: OneModel, engine: FakeEngine
) -> None:
    await asyncio.gather(concepts.create(concept("a")), concepts.create(concept("b")))
    assert len(engine.trainings) == 1
    await concepts.delete("a")
    assert engine.forgotten == []
    assert state_of(concepts, "b") is ConceptState.READY
    await concepts.delete("b")
    assert engine.forgotten == [concept().digest]


async def test_a_shipped_concept_cannot_be_deleted(open_concepts: Open, tmp_path: Path) -> None:
    ship(tmp_path, "kind")
    concepts = open_concepts()
    assert await code_of(asyncio.create_task(concepts.delete("kind"))) is ErrorCode.CONFLICT
    assert ids(concepts) == ["_worker/kind"]


async def test_a_concept_whose_file_cannot_be_deleted_stays(
    concepts: OneModel, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    await concepts.create(concept())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        assert await code_of(asyncio.create_task(concepts.delete("kind"))) is ErrorCode.UNAVAILABLE
    assert engine.forgotten == []
    assert state_of(concepts) is ConceptState.READY


async def test_deleting_ends_a_creation(concepts: OneModel, engine: FakeEngine, store: ConceptStore) -> None:
    engine.training = pausing(HANG)
    creating = asyncio.create_task(concepts.create(concept()))
    await until(lambda: engine.in_training)
    await concepts.delete("kind")
    assert await code_of(creating) is ErrorCode.CONFLICT
    assert not engine.in_training
    assert stored(store) == []
    engine.training = train_well
    assert (await concepts.create(concept())).state is ConceptState.READY


async def test_deleting_before_the_engine_has_the_command_sends_it_none(
    open_concepts: Open, engine: FakeEngine
) -> None:
    """The deletion comes while another thread tokenizes the texts."""
    reached, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def encode_slowly(concept: Concept) -> TrainConcept:
        loop.call_soon_threadsafe(reached.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        return encode(concept)

    concepts = open_concepts(encode=encode_slowly)
    creating = asyncio.create_task(concepts.create(concept()))
    await reached.wait()
    await concepts.delete("kind")
    assert await code_of(creating) is ErrorCode.CONFLICT
    again = asyncio.create_task(concepts.create(concept()))
    await asyncio.sleep(0)
    go_on.set()
    assert (await again).state is ConceptState.READY
    assert len(engine.trainings) == 1


async def test_deleting_while_the_file_is_written_leaves_no_file(
    concepts: OneModel, store: ConceptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    write = store.write

    def write_slowly(concept: Concept) -> None:
        loop.call_soon_threadsafe(writing.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
        write(concept)

    monkeypatch.setattr(store, "write", write_slowly)
    creating = asyncio.create_task(concepts.create(concept()))
    await writing.wait()
    deleting = asyncio.create_task(concepts.delete("kind"))
    await asyncio.sleep(0.01)
    go_on.set()
    await deleting
    assert (await creating).id == "_worker/kind"  # the creation had finished when the deletion began
    assert (ids(concepts), stored(store)) == ([], [])


async def test_a_training_for_two_concepts_goes_on_if_one_is_deleted(
    concepts: OneModel, engine: FakeEngine, store: ConceptStore
) -> None:
    go_on = asyncio.Event()
    engine.training = pausing(go_on)
    one = asyncio.create_task(concepts.create(concept("one")))
    two = asyncio.create_task(concepts.create(concept("two")))
    await until(lambda: engine.in_training)
    await concepts.delete("one")
    assert await code_of(one) is ErrorCode.CONFLICT
    go_on.set()
    assert (await two).state is ConceptState.READY
    assert stored(store) == ["_worker/two"]


async def test_a_concept_is_trained_when_it_is_first_used(open_concepts: Open, engine: FakeEngine) -> None:
    await open_concepts().create(concept())
    concepts = open_concepts()
    assert state_of(concepts) is ConceptState.UNTRAINED
    await asyncio.gather(usable(concepts, "kind"), usable(concepts, "kind"))
    await usable(concepts, "kind")
    assert [command.background for command in engine.trainings] == [False, False]


async def test_a_concept_can_be_used_while_it_is_measured(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore
) -> None:
    store.write(concept())
    concepts = open_concepts()
    engine.training = pausing(HANG, state=TrainingState.MEASURING)
    await usable(concepts, "kind")
    assert state_of(concepts) is ConceptState.MEASURING


async def test_a_concept_that_the_model_cannot_use_says_why_each_time(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore
) -> None:
    store.write(concept())
    concepts = open_concepts()
    engine.training = train_badly
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"_worker/kind cannot be used .* differ in nothing"):
            await usable(concepts, "kind")
    assert len(engine.trainings) == 1
    assert concepts.describe("kind").error == "the examples differ in nothing"
    engine.training = train_well
    assert (await concepts.create(concept())).state is ConceptState.READY


async def test_an_engine_fault_is_not_reported_as_a_fault_of_the_concept(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore
) -> None:
    store.write(concept())
    concepts = open_concepts()
    engine.training = pausing(RuntimeError("CUDA error"))
    assert await code_of(asyncio.create_task(usable(concepts, "kind"))) is ErrorCode.INTERNAL
    assert concepts.describe("kind").error == "internal error"


async def test_waiting_for_several_ends_with_the_first_that_fails(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore
) -> None:
    bad = concept("bad", "Bad.")
    store.write(concept())
    store.write(bad)
    concepts = open_concepts()

    def train(command: TrainConcept) -> Iterable[TrainingStep]:
        return train_badly(command) if command.concept == bad.digest else train_well(command)

    engine.training = train
    with pytest.raises(InvalidRequest, match="_worker/bad cannot"):
        await usable(concepts, "kind", "bad")


async def test_deleting_ends_the_wait_for_a_concept(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore
) -> None:
    store.write(concept())
    concepts = open_concepts()
    engine.training = pausing(HANG)
    waiting = asyncio.create_task(usable(concepts, "kind"))
    await until(lambda: engine.in_training)
    await concepts.delete("kind")
    with pytest.raises(ApiError, match="_worker/kind is unknown") as raised:
        await waiting
    assert raised.value.code is ErrorCode.UNKNOWN_STEERING_CONCEPT


async def test_a_concept_that_was_deleted_after_it_was_found_is_not_trained(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore
) -> None:
    store.write(concept())
    concepts = open_concepts()
    found = concepts.find(["kind"])
    await concepts.delete("kind")
    with pytest.raises(ApiError, match="_worker/kind is unknown"):
        await concepts.make_usable(found)
    assert engine.trainings == []


async def test_a_concept_that_the_engine_has_lost_is_trained_again(
    concepts: OneModel, engine: FakeEngine
) -> None:
    await concepts.create(concept())
    found = concepts.find(["kind"])
    assert concepts.refusal_error(found).code is ErrorCode.UNAVAILABLE
    await concepts.make_usable(found)
    assert len(engine.trainings) == 2
    await concepts.delete("kind")
    assert concepts.refusal_error(found).code is ErrorCode.UNKNOWN_STEERING_CONCEPT


async def test_all_concepts_are_trained_in_the_background_one_after_the_other(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore, tmp_path: Path
) -> None:
    ship(tmp_path, "shipped", "Shipped.")
    ship(tmp_path, "same", "Shipped.")
    store.write(concept("a", "A."))
    store.write(concept("b", "B."))
    concepts = open_concepts()
    most_concurrent = 0

    def train(command: TrainConcept) -> Iterable[TrainingStep]:
        nonlocal most_concurrent
        most_concurrent = max(most_concurrent, len(engine.in_training))
        return train_well(command)

    engine.training = train
    concepts.prepare()
    await until(lambda: state_of(concepts, "b") is ConceptState.READY)
    assert most_concurrent == 1
    assert [command.concept for command in engine.trainings] == [
        digest_of((Example(text, "Awful."),)) for text in ("Shipped.", "A.", "B.")
    ]
    assert all(command.background for command in engine.trainings)


@pytest.mark.parametrize("train", [True, False])
async def test_what_an_earlier_server_has_trained_is_ready_at_once(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore, train: bool
) -> None:
    """The concepts before it do not have to be trained first."""
    store.write(concept("a", "A."))
    store.write(concept())
    engine.trained.add(concept().digest)
    engine.training = pausing(HANG)
    concepts = open_concepts()
    concepts.prepare(train)
    await until(lambda: state_of(concepts) is ConceptState.READY)
    assert concepts.describe("kind").report is not None
    await usable(concepts, "kind")
    await until(
        lambda: state_of(concepts, "a") is (ConceptState.TRAINING if train else ConceptState.UNTRAINED)
    )
    assert concept().digest not in [command.concept for command in engine.trainings]


async def test_a_concept_that_was_deleted_while_it_was_looked_for_is_not_restored(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore
) -> None:
    store.write(concept())
    engine.trained.add(concept().digest)
    concepts = open_concepts()
    concepts.prepare(train=False)
    await concepts.delete("kind")
    await until(lambda: engine.exports)
    await concepts.create(concept())
    assert len(engine.trainings) == 1


async def test_background_training_begins_once_a_lost_engine_is_back(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore
) -> None:
    store.write(concept())
    concepts = open_concepts()
    engine.restored = asyncio.Event()
    engine.question_refusal = EngineUnavailable()
    concepts.prepare()
    await until(lambda: engine.exports)
    await asyncio.sleep(0.01)
    assert engine.trainings == []
    engine.restored.set()
    await until(lambda: state_of(concepts) is ConceptState.READY)


async def test_nothing_is_trained_if_the_engine_is_lost_for_good(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.write(concept())
    concepts = open_concepts()
    engine.available = False
    engine.question_refusal = EngineUnavailable()
    concepts.prepare()
    await until(lambda: engine.exports)
    await asyncio.sleep(0.01)
    assert (engine.trainings, caplog.messages) == ([], [])


async def test_a_concept_that_cannot_be_trained_does_not_stop_the_others(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.write(concept("a", "too long"))
    store.write(concept("b"))
    store.write(concept("c", "C."))
    engine.training = lambda command: (
        train_badly(command) if command.concept == concept().digest else train_well(command)
    )
    concepts = open_concepts()
    concepts.prepare()
    await until(lambda: state_of(concepts, "c") is ConceptState.READY)
    assert [state_of(concepts, name) for name in "ab"] == [ConceptState.FAILED] * 2
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "_worker/a" in caplog.text


async def test_a_background_training_is_prioritized_once_when_requests_wait(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore
) -> None:
    store.write(concept())
    concepts = open_concepts()
    go_on = asyncio.Event()
    engine.training = pausing(go_on)
    concepts.prepare()
    await until(lambda: engine.in_training)
    waiting = [asyncio.create_task(usable(concepts, "kind")) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert engine.prioritized == [concept().digest]
    go_on.set()
    await asyncio.gather(*waiting)
    assert len(engine.trainings) == 1


async def test_a_ready_concept_is_not_prioritized(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore
) -> None:
    store.write(concept())
    concepts = open_concepts()
    concepts.prepare()
    await until(lambda: state_of(concepts) is ConceptState.READY)
    await usable(concepts, "kind")
    await concepts.create(concept())
    assert (len(engine.trainings), engine.prioritized) == (1, [])


async def test_a_request_does_not_wait_for_background_trainings(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore
) -> None:
    store.write(concept("a", "A."))
    store.write(concept("b"))
    concepts = open_concepts()
    engine.training = lambda command: (
        train_well(command) if command.concept == concept().digest else pausing(HANG)(command)
    )
    concepts.prepare()
    await until(lambda: engine.in_training)
    await asyncio.wait_for(usable(concepts, "b"), 5)
    assert [command.background for command in engine.trainings] == [True, False]


async def test_background_training_stops_if_the_engine_is_lost(
    open_concepts: Open, engine: FakeEngine, store: ConceptStore
) -> None:
    store.write(concept("a", "A."))
    store.write(concept("b"))
    concepts = open_concepts()
    engine.training = pausing(EngineUnavailable())
    concepts.prepare()
    await until(lambda: engine.trainings and not engine.in_training)
    await asyncio.sleep(0.01)
    assert len(engine.trainings) == 1
    assert [state_of(concepts, name) for name in "ab"] == [ConceptState.UNTRAINED] * 2


async def test_a_training_without_a_final_update_is_unavailable(
    concepts: OneModel, engine: FakeEngine
) -> None:
    engine.training = lambda command: [TrainingUpdate(command.concept, TrainingState.TRAINING, 0.5)]
    assert await code_of(asyncio.create_task(concepts.create(concept()))) is ErrorCode.UNAVAILABLE


async def test_the_store_matches_the_registry_after_concurrent_changes(
    concepts: OneModel, store: ConceptStore
) -> None:
    """Tasks create and delete concepts with the same few names."""

    async def churn(seed: int) -> None:
        name, text = f"n{seed % 3}", f"text {seed % 2}"
        for _ in range(3):
            for act in (lambda: concepts.create(concept(name, text)), lambda: concepts.delete(name)):
                try:
                    await act()
                except ApiError as error:
                    assert error.code in (ErrorCode.UNKNOWN_STEERING_CONCEPT, ErrorCode.CONFLICT)  # noqa: PT017

    await asyncio.wait_for(asyncio.gather(*map(churn, range(12))), 20)
    assert sorted(ids(concepts)) == sorted(stored(store))


class TwoModels:
    """The registry of a server with the models a and b."""

    def __init__(self, store: ConceptStore, encode_b: Callable[[Concept], TrainConcept] = encode) -> None:
        metrics = Metrics()
        self.engines = {name: FakeEngine(model_info(Path(), 300)) for name in "ab"}
        self.a = model_of("a", self.engines["a"], metrics)
        self.b = model_of("b", self.engines["b"], metrics, encode_b)
        self.concepts = Concepts(LocalStorage(store), metrics, LimitSettings())
        for model in (self.a, self.b):
            self.concepts.add_model(model)

    @property
    def trainings(self) -> tuple[int, int]:
        a, b = self.engines.values()
        return len(a.trainings), len(b.trainings)


def states(described: ConceptDetail) -> dict[str, ConceptState]:
    assert described.models is not msgspec.UNSET
    return {name: on_model.state for name, on_model in described.models.items()}


async def test_a_concept_is_trained_on_each_of_the_models(store: ConceptStore) -> None:
    both = TwoModels(store)
    made = await both.concepts.create(concept(), [both.a, both.b])
    assert states(made) == {"a": ConceptState.READY, "b": ConceptState.READY}
    assert both.trainings == (1, 1)
    [card] = both.concepts.overview([both.a, both.b]).data
    assert card.models is not msgspec.UNSET
    assert card.models["b"] == ConceptOnModel(ConceptState.READY, 1.0), "without its report"


async def test_a_concept_for_one_model_is_trained_on_the_other_at_its_first_use(store: ConceptStore) -> None:
    both = TwoModels(store)
    made = await both.concepts.create(concept(), [both.a])
    assert (made.state, made.models, both.trainings) == (ConceptState.READY, msgspec.UNSET, (1, 0))
    assert both.concepts.describe("kind", [both.b]).state is ConceptState.UNTRAINED
    await both.concepts.make_usable(both.concepts.find(["kind"]), both.b)
    assert both.trainings == (1, 1)


async def test_one_model_that_can_use_a_concept_is_enough(store: ConceptStore) -> None:
    def refuse(_: Concept) -> TrainConcept:
        raise InvalidRequest("it belongs to another model")

    both = TwoModels(store, encode_b=refuse)
    made = await both.concepts.create(concept(), [both.a, both.b])
    assert states(made) == {"a": ConceptState.READY, "b": ConceptState.FAILED}
    assert both.concepts.describe("kind", [both.b]).error == "it belongs to another model"
    with pytest.raises(InvalidRequest, match="it belongs to another model"):
        await both.concepts.create(concept("other"), [both.b])
    assert [card.id for card in both.concepts.overview([both.a]).data] == ["_worker/kind"]


async def test_a_creation_does_not_wait_for_a_model_that_is_down(store: ConceptStore) -> None:
    both = TwoModels(store)
    both.engines["b"].available = False
    made = await both.concepts.create(concept(), [both.a, both.b])
    assert states(made) == {"a": ConceptState.READY, "b": ConceptState.UNTRAINED}


async def test_a_deleted_concept_is_forgotten_by_all_models(store: ConceptStore) -> None:
    both = TwoModels(store)
    await both.concepts.create(concept(), [both.a, both.b])
    await both.concepts.delete("kind")
    assert [engine.forgotten for engine in both.engines.values()] == [[concept().digest]] * 2


async def test_a_concept_of_another_server_is_known_and_trained_on_use(
    concepts: OneModel, engine: FakeEngine, store: ConceptStore
) -> None:
    concepts.adopt(concept())
    concepts.adopt(concept())
    await usable(concepts, "kind")
    assert len(engine.trainings) == 1
    assert stored(store) == [], "the other server has stored it"
    concepts.discard("_worker/kind")
    concepts.discard("_worker/none")
    assert ids(concepts) == []


async def test_a_concept_of_another_server_ends_the_creation_of_one_with_its_name(
    concepts: OneModel, engine: FakeEngine
) -> None:
    engine.training = pausing(asyncio.Event())
    creating = asyncio.create_task(concepts.create(concept(text="Other.")))
    await until(lambda: engine.in_training)
    concepts.keep_only([])
    assert ids(concepts) == ["_worker/kind"], "it is in creation"
    concepts.adopt(concept())
    assert await code_of(creating) is ErrorCode.CONFLICT
    assert ids(concepts) == ["_worker/kind"]


async def test_shipped_concepts_do_not_change_with_those_of_other_servers(
    open_concepts: Open, tmp_path: Path
) -> None:
    ship(tmp_path, "kind")
    concepts = open_concepts()
    concepts.adopt(concept())
    concepts.discard("_worker/kind")
    concepts.keep_only([])
    assert concepts.describe("kind").shipped

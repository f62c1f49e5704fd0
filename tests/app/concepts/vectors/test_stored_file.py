"""Imported concepts survive the process, with their vectors, in one file each."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load, save

from app.concepts.concept import Concept, Example, digest_of
from app.concepts.store import ConceptStore
from app.concepts.vectors.imported import ServedModel, bind
from app.concepts.vectors.imported import digest_of as digest_of_vectors
from app.concepts.vectors.safetensors_file import read_safetensors
from app.errors import ApiError, ErrorCode, InvalidRequest
from app.schemas.concepts import full_id
from inference.interface.concepts import GivenVectors
from tests.app.fakes import VECTORS

SERVED = ServedModel("tiny", "5f" * 32, hidden_size=8, num_layers=4)
EXAMPLES = (Example("Thanks, fam.", "I thank you.", "Greet me."), Example("Jo – 日本", "Good day."))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """This directory is missing until something is written."""
    return tmp_path / "data" / "concepts"


@pytest.fixture
def store(tmp_path: Path, directory: Path) -> ConceptStore:
    return ConceptStore(tmp_path / "shipped", directory)


def concept(
    name: str = "slang", examples: tuple[Example, ...] = EXAMPLES, given: GivenVectors = VECTORS
) -> Concept:
    vectors = bind(given, SERVED, digest_of(examples) if examples else "")
    return Concept(full_id(name), "Slang – 日本", examples, 1_700_000_000, vectors=vectors)


@pytest.mark.parametrize("examples", [(), EXAMPLES])
def test_an_imported_concept_can_be_read_back(
    store: ConceptStore, directory: Path, examples: tuple[Example, ...]
) -> None:
    store.write(concept(examples=examples))
    assert os.listdir(directory) == ["slang.safetensors"]
    [found] = store.load()
    assert found == concept(examples=examples)
    assert found.vectors is not None
    assert found.vectors.load() == VECTORS
    assert store.problems == []
    assert (directory / "slang.safetensors").stat().st_mode & 0o077 == 0


def test_only_the_header_is_read_at_the_start(store: ConceptStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(concept())

    def fail(path: Path) -> bytes:
        raise AssertionError("the values were read")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        assert store.load() == [concept()]


def test_both_kinds_of_created_concepts_are_in_one_directory(store: ConceptStore, directory: Path) -> None:
    made = Concept("_worker/made", "", EXAMPLES, 1_600_000_000)
    store.write(concept())
    store.write(made)
    assert store.load() == [made, concept()]
    store.remove(concept())
    assert os.listdir(directory) == ["made.json"]
    store.remove(made)
    assert store.load() == []


def test_a_second_file_of_the_same_name_is_a_problem(store: ConceptStore, directory: Path) -> None:
    store.write(concept())
    store.write(Concept(full_id("slang"), "", EXAMPLES, 1_600_000_000))
    [only] = store.load()
    assert only.vectors is None
    assert [problem.file for problem in store.problems] == ["slang.safetensors"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_nothing(
    store: ConceptStore, directory: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    directory.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space left"):
            store.write(concept())
    assert os.listdir(directory) == []


def test_a_concept_named_by_the_digest_of_its_vectors_can_be_read_back(store: ConceptStore) -> None:
    named = concept(name=concept().digest)
    store.write(named)
    assert store.load() == [named]


def changed(directory: Path, change: Any) -> None:
    """Rewrites the file, with its tensors and its metadata as `change` returns them."""
    file = directory / "slang.safetensors"
    metadata, _ = read_safetensors(file.read_bytes())
    file.write_bytes(save(*change(load(file.read_bytes()), metadata)))


def test_vectors_that_have_changed_are_not_used(store: ConceptStore, directory: Path) -> None:
    store.write(concept())
    changed(directory, lambda tensors, metadata: ({"values": tensors["values"] + np.float32(1)}, metadata))
    [found] = store.load()
    assert found.vectors is not None
    with pytest.raises(InvalidRequest, match="has changed since the import"):
        found.vectors.load()


def test_a_file_that_is_gone_is_reported_without_its_path(
    store: ConceptStore, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.write(concept())
    [found] = store.load()
    assert found.vectors is not None
    (directory / "slang.safetensors").unlink()
    with pytest.raises(ApiError, match="the concept's vectors cannot be read") as failed:
        found.vectors.load()
    assert failed.value.code is ErrorCode.UNAVAILABLE
    assert "No such file" in caplog.text


def record_with(**changes: Any) -> Any:
    def change(tensors: Any, metadata: dict[str, str]) -> Any:
        record = json.loads(metadata["record"]) | changes
        return tensors, metadata | {"record": json.dumps(record)}

    return change


BROKEN: dict[str, Any] = {
    "another format": lambda tensors, metadata: (tensors, metadata | {"format": "pt"}),
    "no record": lambda tensors, metadata: (tensors, {"format": metadata["format"]}),
    "a record that is no JSON": lambda tensors, metadata: (tensors, metadata | {"record": "{"}),
    "another name": record_with(name="other"),
    "a path for a name": record_with(name="../slang"),
    "a blank text": record_with(examples=[{"positive": " ", "negative": "a"}]),
    "no vectors": record_with(vectors=None),
    "vectors without a digest": record_with(vectors={"model": "tiny"}),
}


@pytest.mark.parametrize("change", list(BROKEN.values()), ids=list(BROKEN))
def test_a_broken_file_is_left_out_and_reported(store: ConceptStore, directory: Path, change: Any) -> None:
    store.write(concept())
    store.write(concept("sound"))
    changed(directory, change)
    assert [found.id for found in store.load()] == ["_worker/sound"]
    assert_reported(store, directory)


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"\x80\x04pickle", (2**40).to_bytes(8, "little") + b"{", bytes(16)]
)
def test_a_file_of_another_format_is_left_out_and_reported(
    store: ConceptStore, directory: Path, raw: bytes
) -> None:
    directory.mkdir(parents=True)
    (directory / "slang.safetensors").write_bytes(raw)
    assert store.load() == []
    assert_reported(store, directory)


def test_a_pipe_is_left_out_and_reported(store: ConceptStore, directory: Path) -> None:
    directory.mkdir(parents=True)
    os.mkfifo(directory / "slang.safetensors")
    assert store.load() == []
    assert_reported(store, directory)


def assert_reported(store: ConceptStore, directory: Path) -> None:
    [problem] = store.problems
    assert problem.file == "slang.safetensors"
    assert 5 < len(problem.reason) <= 200
    assert str(directory) not in problem.reason


def test_the_digest_covers_all_that_decides_about_effect_and_report() -> None:
    changes: list[dict[str, Any]] = [
        {"blocks": (1, 3)},
        {"values": bytes(64)},
        {"down_scale": 1.0},
        {"max_strength": 2.0},
        {"max_down_strength": 2.0},
        {"reading_block": 2},
        {"reading_range": (0.0, 1.0)},
        {"pairs_digest": "ab"},
        {"up_blocks": (1,)},
        {"down_blocks": (1,)},
        {"lengths": (1.0, 2.0)},
    ]
    given = [VECTORS, *(msgspec.structs.replace(VECTORS, **change) for change in changes)]
    assert {field for change in changes for field in change} == set(GivenVectors.__struct_fields__)
    digests = [digest_of_vectors(one, "5f", "") for one in given]
    digests += [digest_of_vectors(VECTORS, "5e", ""), digest_of_vectors(VECTORS, "5f", "ab")]
    assert len(set(digests)) == len(digests)
    assert digest_of_vectors(VECTORS, "5f", "") == digests[0]

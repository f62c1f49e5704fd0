"""Concepts survive the process; files are written atomically; an invalid file is reported and left out."""

import hashlib
import json
import logging
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from app.concepts.concept import Concept, Example, digest_of
from app.concepts.store import ConceptStore
from app.schemas.concepts import full_id

ROOT = Path(__file__).parents[3]
PAIR = {"positive": "Thanks, fam.", "negative": "I thank you."}
EXAMPLES = (Example("Thanks, fam.", "I thank you."), Example("Jo – 日本 🙂\n", 'a "quoted"\\ text'))


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    directory = tmp_path / "shipped"
    directory.mkdir()
    return directory


@pytest.fixture
def created(tmp_path: Path) -> Path:
    """This directory is missing until something is written."""
    return tmp_path / "data" / "concepts"


@pytest.fixture
def store(shipped: Path, created: Path) -> ConceptStore:
    return ConceptStore(shipped, created)


def concept(name: str = "slang", created: int = 1_700_000_000) -> Concept:
    return Concept(full_id(name), "Slang", EXAMPLES, created)


def ship(directory: Path, name: str = "slang", **fields: object) -> Path:
    file = directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"name": name, "description": "", "examples": [PAIR], **fields}))
    return file


def reasons(store: ConceptStore) -> dict[str, str]:
    return {problem.file: problem.reason for problem in store.problems}


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    st.sampled_from(
        ["\0", "a\x85", "\u2028b", "\ufeffc", "\uffff", "\r\n.", "\x1b[0m", "---\n", "null", "~", '"', "\\"]
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(positive=TEXTS, negative=TEXTS, description=TEXTS)
def test_any_text_can_be_read_back(
    store: ConceptStore, positive: str, negative: str, description: str
) -> None:
    assume(positive.strip() and negative.strip() and positive != negative)
    written = Concept(full_id("any"), description, (Example(positive, negative),), 1)
    store.write(written)
    assert store.load() == [written]
    assert store.problems == []


def test_the_digest_depends_on_the_pairs_and_their_order() -> None:
    raw = '[["Thanks, fam.","I thank you."],["Jo – 日本 🙂\\n","a \\"quoted\\"\\\\ text"]]'
    assert concept().digest == hashlib.sha256(raw.encode()).hexdigest()
    assert digest_of(EXAMPLES[::-1]) != concept().digest
    assert digest_of((Example("I thank you.", "Thanks, fam."),)) != digest_of(EXAMPLES[:1])


@pytest.mark.parametrize(
    ("given", "expected"), [("a", "_worker/a"), ("_worker/a", "_worker/a"), ("_worker", "_worker/_worker")]
)
def test_an_id_may_be_given_without_its_prefix(given: str, expected: str) -> None:
    assert full_id(given) == expected


def test_missing_directories_are_empty_and_are_not_created(tmp_path: Path) -> None:
    store = ConceptStore(tmp_path / "none", tmp_path / "neither")
    assert store.load() == []
    assert store.problems == []
    assert list(tmp_path.iterdir()) == []


def test_the_next_process_finds_the_written_concepts(
    store: ConceptStore, shipped: Path, created: Path
) -> None:
    later, earlier = concept("b", 2), concept("a", 3)
    store.write(later)
    store.write(earlier)
    assert ConceptStore(shipped, created).load() == [later, earlier]
    assert sorted(os.listdir(created)) == ["a.json", "b.json"]


def test_a_concept_named_by_its_digest_can_be_read_back(store: ConceptStore) -> None:
    named = concept(digest_of(EXAMPLES))
    store.write(named)
    assert store.load() == [named]


def test_shipped_concepts_come_first_and_are_marked(store: ConceptStore, shipped: Path) -> None:
    store.write(concept("a"))
    ship(shipped, "b", description="Slang")
    first, second = store.load()
    assert (first.id, first.shipped, first.description) == ("_worker/b", True, "Slang")
    assert first.examples == (Example(**PAIR),)
    assert (second.id, second.shipped) == ("_worker/a", False)


def test_a_removed_concept_does_not_come_back(store: ConceptStore, created: Path) -> None:
    store.write(concept())
    store.remove(concept())
    store.remove(concept())
    assert store.load() == []
    assert os.listdir(created) == []


def test_removing_needs_no_directory(store: ConceptStore) -> None:
    store.remove(concept())
    assert store.load() == []


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_crash_before_the_rename_leaves_the_old_file(
    store: ConceptStore, created: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store.write(concept(created=1))

    def crash(*arguments: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(os, step, crash)
        patch.setattr(os, "unlink", crash)  # a killed process cleans nothing up
        with pytest.raises(Crash):
            store.write(concept(created=2))
    assert len(os.listdir(created)) == 2
    assert store.load() == [concept(created=1)]
    assert os.listdir(created) == ["slang.json"]
    assert store.problems == []


def test_files_and_directories_are_synced_in_the_right_order(
    store: ConceptStore, monkeypatch: pytest.MonkeyPatch, created: Path
) -> None:
    """New directories first, then the content, then the rename, then the directory with the new name."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        done.append("content" if path.suffix == ".tmp" else f"{path.name}/")
        fsync(handle)

    def record_replace(source: str, target: Path) -> None:
        done.append(f"name {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    store.write(concept())
    assert sorted(done[:2]) == sorted([f"{created.parent.parent.name}/", "data/"])
    assert done[2:] == ["content", "name slang.json", "concepts/"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_nothing(
    store: ConceptStore, created: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    created.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space left"):
            store.write(concept())
    assert os.listdir(created) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_keeps_an_older_file(
    store: ConceptStore, created: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """An invalid file has no concept, so a new concept may get its name. A full disk must not delete it."""

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    created.mkdir(parents=True)
    store.write(concept())
    [file] = created.iterdir()
    file.write_text("written by hand, with a mistake")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space left"):
            store.write(concept())
    assert file.read_text() == "written by hand, with a mistake"


def test_a_write_whose_directory_cannot_be_synced_leaves_nothing(
    store: ConceptStore, created: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails after the rename: a refused concept must not appear after a restart."""
    created.mkdir(parents=True)
    fsync = os.fsync

    def fail_for_directories(handle: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{handle}")).is_dir():
            raise OSError(5, "Input/output error")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_for_directories)
        with pytest.raises(OSError, match="Input/output error"):
            store.write(concept())
    assert os.listdir(created) == []


SOUND = {"name": "x", "description": "", "created": 1, "examples": [PAIR]}
BROKEN_JSON = {
    "empty": b"",
    "cut": json.dumps(SOUND).encode()[:-5],
    "not an object": b"[]",
    "null": b"null",
    "bad utf-8": json.dumps(SOUND).encode().replace(b"fam", b"\xff\xfe"),
    "lone surrogate": json.dumps(SOUND).replace("fam", "\\ud800").encode(),
    "no name": json.dumps({key: value for key, value in SOUND.items() if key != "name"}).encode(),
    "another name": json.dumps(SOUND | {"name": "y"}).encode(),
    "a name with its prefix": json.dumps(SOUND | {"name": "_worker/x"}).encode(),
    "a path for a name": json.dumps(SOUND | {"name": "../x"}).encode(),
    "no examples": json.dumps(SOUND | {"examples": []}).encode(),
    "examples of another shape": json.dumps(SOUND | {"examples": [["a", "b"]]}).encode(),
    "half a pair": json.dumps(SOUND | {"examples": [{"positive": "a"}]}).encode(),
    "a number for a text": json.dumps(SOUND | {"examples": [PAIR | {"positive": 5}]}).encode(),
    "a blank text": json.dumps(SOUND | {"examples": [PAIR | {"positive": " \n"}]}).encode(),
    "a pair of equal texts": json.dumps(SOUND | {"examples": [{"positive": "a", "negative": "a"}]}).encode(),
    "before 1970": json.dumps(SOUND | {"created": -1}).encode(),
    "deep": b"[" * 100_000,
}
BROKEN_YAML = {
    "empty": "",
    "not yaml": "name: [",
    "a tab": "name:\tx\n\texamples: []",
    "a list": "- name: x",
    "deep": "[" * 10_000,
    "a boolean for a text": "name: x\nexamples: [{positive: no, negative: a}]",
    "a typing mistake": "name: x\nexmaples: [{positive: b, negative: a}]",
    "an unknown key": "name: x\nauthor: me\nexamples: [{positive: b, negative: a}]",
    "an invalid date": "name: x\nexamples: [{positive: 2020-13-45, negative: a}]",
    "half a surrogate pair": 'name: x\nexamples: [{positive: "\\ud800", negative: a}]',
    "half a surrogate pair in the description": (
        'name: x\ndescription: "\\ud800"\nexamples: [{positive: b, negative: a}]'
    ),
    "another name": "name: y\nexamples: [{positive: b, negative: a}]",
}


@pytest.mark.parametrize("raw", list(BROKEN_JSON.values()), ids=list(BROKEN_JSON))
def test_an_invalid_created_file_is_left_out_and_reported(
    store: ConceptStore, created: Path, caplog: pytest.LogCaptureFixture, raw: bytes
) -> None:
    store.write(concept("sound"))
    (created / "x.json").write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        assert [concept.id for concept in store.load()] == ["_worker/sound"]
    assert_reported(store, caplog, "x.json", created)


@pytest.mark.parametrize("text", list(BROKEN_YAML.values()), ids=list(BROKEN_YAML))
def test_an_invalid_shipped_file_is_left_out_and_reported(
    store: ConceptStore, shipped: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    ship(shipped, "sound")
    (shipped / "x.yaml").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert [concept.id for concept in store.load()] == ["_worker/sound"]
    assert_reported(store, caplog, "x.yaml", shipped)


def assert_reported(
    store: ConceptStore, caplog: pytest.LogCaptureFixture, file: str, directory: Path
) -> None:
    [(name, reason)] = reasons(store).items()
    assert name == file
    assert 5 < len(reason) <= 200
    assert "\n" not in reason
    assert str(directory) not in reason
    [line] = [record.getMessage() for record in caplog.records]
    assert file in line
    assert reason in line


def test_a_digest_of_other_examples_as_the_name_is_a_problem(store: ConceptStore, shipped: Path) -> None:
    store.write(concept("0f" * 32))
    ship(shipped, "f0" * 32)
    assert store.load() == []
    assert set(reasons(store)) == {"0f" * 32 + ".json", "f0" * 32 + ".yaml"}
    assert all("not the digest of its examples or vectors" in reason for reason in reasons(store).values())


@pytest.mark.parametrize("name", ["a b", "a.b", "ä", "a" * 65, "a\n"])
def test_a_file_with_an_invalid_name_is_a_problem(store: ConceptStore, shipped: Path, name: str) -> None:
    ship(shipped, name)
    assert store.load() == []
    assert list(reasons(store)) == [f"{name}.yaml"]


def test_a_file_name_that_is_not_utf_8_is_reported_as_valid_text(store: ConceptStore, shipped: Path) -> None:
    Path(os.fsdecode(os.fsencode(shipped) + b"/\xff.yaml")).write_text("name: x")
    assert store.load() == []
    [name] = reasons(store)
    assert name.encode()


def test_a_path_that_is_not_a_regular_file_is_a_problem(store: ConceptStore, shipped: Path) -> None:
    (shipped / "directory.yaml").mkdir()
    os.mkfifo(shipped / "pipe.yaml")
    (shipped / "nowhere.yaml").symlink_to(shipped / "gone")
    assert store.load() == []
    assert set(reasons(store)) == {"directory.yaml", "pipe.yaml", "nowhere.yaml"}


def test_an_unreadable_file_is_a_problem(
    store: ConceptStore, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    ship(shipped)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert store.load() == []
    assert reasons(store) == {"slang.yaml": "cannot be read: Permission denied"}


def test_a_file_in_place_of_the_directory_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "concepts").write_text("")
    store = ConceptStore(tmp_path / "concepts", tmp_path / "none")
    assert store.load() == []
    assert reasons(store) == {"concepts": "cannot be read: Not a directory"}


def test_other_files_are_ignored(store: ConceptStore, shipped: Path, created: Path) -> None:
    created.mkdir(parents=True)
    for directory in (shipped, created):
        for name in ("README.md", ".hidden.yaml", ".hidden.json", "notes.tmp"):
            (directory / name).write_text("{")
    assert store.load() == []
    assert store.problems == []
    assert (created / "notes.tmp").exists()


def test_a_created_concept_does_not_replace_a_shipped_one(
    store: ConceptStore, shipped: Path, created: Path
) -> None:
    ship(shipped, "slang")
    store.write(concept("slang"))
    [only] = store.load()
    assert only.shipped
    assert list(reasons(store)) == ["slang.json"]
    assert (created / "slang.json").exists()


def test_writing_a_concept_again_removes_its_problem(store: ConceptStore, created: Path) -> None:
    created.mkdir(parents=True)
    (created / "slang.json").write_text("{")
    (created / "other.json").write_text("{")
    store.load()
    store.write(concept("slang"))
    assert list(reasons(store)) == ["other.json"]


def test_only_the_owner_can_read_a_written_file(store: ConceptStore, created: Path) -> None:
    store.write(concept())
    assert (created / "slang.json").stat().st_mode & 0o077 == 0


def test_the_concepts_shipped_with_tiller_are_valid(tmp_path: Path) -> None:
    directory = ROOT / "configs" / "concepts"
    store = ConceptStore(directory, tmp_path)
    found = store.load()
    assert store.problems == []
    assert found
    assert {concept.id for concept in found} == {f"_worker/{file.stem}" for file in directory.iterdir()}
    for concept in found:
        assert concept.description
        assert len({digest_of((example,)) for example in concept.examples}) == len(concept.examples) >= 20

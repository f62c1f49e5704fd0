"""Directions and the calibration on disk. Files that cannot be used count as missing."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from inference.interface.concepts import AnswerEffect, ConceptReport, Effect, SampleAnswer
from inference.steering.direction_files import DirectionFiles
from inference.steering.directions import Calibration, Direction
from tests.inference.steering.conftest import make_direction

REPORT = ConceptReport(
    works=True,
    summary="It works. – 日本",
    warnings=["careful"],
    num_examples=9,
    num_distinct=8,
    num_groups=7,
    num_held_out=4,
    agreement=0.1 + 0.2,
    effects=[Effect(-1.0, -0.7, 0.1 + 0.2, 1.1), Effect(1.0, 0.7, None, 1.1)],
    spearman=1.0,
    specificity=None,
    specificity_error=None,
    answers=[AnswerEffect(1.0, 0.5, 0.0, 1.5)],
    samples=[SampleAnswer(1.0, 0, [5, 6])],
    blocks=[0, 1],
    down_blocks=[1],
    reading_block=1,
    dose=0.1,
    down_dose=0.05,
    max_strength=1.5,
    max_down_strength=2.0,
)
DIRECTION = make_direction(
    1,
    dose=0.1 + 0.2,
    down_scale=1 / 3,
    max_strength=1.7,
    reading_block=1,
    reading_range=(-0.7, 23000.1234567),
)


def is_same(loaded: tuple[Direction, ConceptReport] | None) -> bool:
    assert loaded is not None
    direction, report = loaded
    numbers = [name for name in Direction.__dataclass_fields__ if name != "units"]
    return (
        direction.units.dtype == np.float32
        and np.array_equal(direction.units, DIRECTION.units)
        and all(getattr(direction, name) == getattr(DIRECTION, name) for name in numbers)
        and report == REPORT
    )


def test_a_saved_direction_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    directory = tmp_path / "not" / "yet"
    DirectionFiles(directory).save("kind", DIRECTION, REPORT)
    assert is_same(DirectionFiles(directory).load("kind"))
    assert DirectionFiles(directory).load("rude") is None
    assert os.listdir(directory) == ["kind.safetensors"]


def test_a_saved_calibration_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    calibration = Calibration((1 / 3, 1e-7, 23000.123456789), 0.1 + 0.2)
    assert DirectionFiles(tmp_path).load_calibration() is None
    DirectionFiles(tmp_path).save_calibration(calibration)
    assert DirectionFiles(tmp_path).load_calibration() == calibration


def test_saving_again_replaces_the_direction(tmp_path: Path) -> None:
    files = DirectionFiles(tmp_path)
    files.save("kind", make_direction(2), REPORT)
    files.save("kind", DIRECTION, REPORT)
    assert is_same(files.load("kind"))


def test_a_removed_direction_is_gone(tmp_path: Path) -> None:
    files = DirectionFiles(tmp_path)
    files.save("kind", DIRECTION, REPORT)
    files.remove("kind")
    files.remove("never there")
    assert files.load("kind") is None
    assert os.listdir(tmp_path) == []


def test_without_a_directory_nothing_is_stored() -> None:
    files = DirectionFiles(None)
    files.save("kind", DIRECTION, REPORT)
    files.save_calibration(Calibration((1.0,), 0.1))
    files.remove("kind")
    assert files.load("kind") is None
    assert files.load_calibration() is None


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, -1])
def test_a_truncated_file_counts_as_missing(tmp_path: Path, kept: int) -> None:
    files = DirectionFiles(tmp_path)
    files.save("kind", DIRECTION, REPORT)
    path = tmp_path / "kind.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert files.load("kind") is None


UNITS = DIRECTION.units


def save_with(
    directory: Path,
    units: np.ndarray | None = UNITS,
    report: str | None = None,
    direction: str | dict[str, object] | None = None,
    without: tuple[str, ...] = (),
) -> None:
    """Saves the direction with other content. `direction`: instead of its numbers, or changes of them."""
    DirectionFiles(directory).save("good", DIRECTION, REPORT)
    metadata = _metadata_in(directory / "good.safetensors")
    if report is not None:
        metadata["report"] = report
    if isinstance(direction, str):
        metadata["direction"] = direction
    elif direction is not None:
        metadata["direction"] = json.dumps({**json.loads(metadata["direction"]), **direction})
    metadata = {key: value for key, value in metadata.items() if key not in without}
    tensors = {"other": UNITS} if units is None else {"units": units}
    save_file(tensors, directory / "kind.safetensors", metadata or None)


@pytest.mark.parametrize(
    "content",
    [
        {"without": ("report", "direction")},
        {"without": ("report",)},
        {"without": ("direction",)},
        {"report": "{}"},
        {"report": "no json"},
        {"direction": "{}"},
        {"direction": "no json"},
        {"direction": '{"blocks": [0, 1]}'},
        {"direction": {"down_scale": "much"}},
        {"direction": {"down_scale": -1.0}},
        {"direction": {"max_strength": None}},
        {"direction": {"lengths": [1.0]}},
        {"direction": {"lengths": [1.0, -1.0]}},
        {"direction": {"blocks": [1, 0]}},
        {"direction": {"blocks": [0, 1, 2]}},
        {"direction": {"reading_block": 2}},
        {"direction": {"reading_range": [1.0, 1.0]}},
        {"direction": {"reading_range": [1.0]}},
        {"units": None},
        {"units": UNITS[0]},
        {"units": np.ones((), np.float32)},
        {"units": UNITS.astype(np.float64)},
        {"units": UNITS[:1]},
        {"units": UNITS * np.float32("nan")},
        {"units": UNITS * np.float32("inf")},
    ],
)
def test_a_file_with_other_content_counts_as_missing(tmp_path: Path, content: dict[str, object]) -> None:
    save_with(tmp_path, **content)
    assert DirectionFiles(tmp_path).load("kind") is None
    assert is_same(DirectionFiles(tmp_path).load("good"))
    save_with(tmp_path)
    assert is_same(DirectionFiles(tmp_path).load("kind"))


def _metadata_in(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header["__metadata__"]


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"noise" * 1000, b"{}"])
def test_a_corrupt_file_counts_as_missing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "kind.safetensors").write_bytes(content)
    (tmp_path / "calibration.json").write_bytes(content)
    files = DirectionFiles(tmp_path)
    assert files.load("kind") is None
    assert files.load_calibration() is None


@pytest.mark.parametrize(
    "content", [b'{"norms": [1.0, "a"], "cap": 0.5}', b'{"norms": [1.0]}', b'{"cap": 0.5}', b'"\xff"']
)
def test_an_invalid_calibration_counts_as_missing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "calibration.json").write_bytes(content)
    assert DirectionFiles(tmp_path).load_calibration() is None


def test_directories_with_the_files_names_count_as_missing(tmp_path: Path) -> None:
    for name in ("kind.safetensors", "calibration.json"):
        (tmp_path / name).mkdir()
    assert DirectionFiles(tmp_path).load("kind") is None
    assert DirectionFiles(tmp_path).load_calibration() is None


def test_a_failed_write_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    files = DirectionFiles(tmp_path / "file" / "directory")
    files.save("kind", DIRECTION, REPORT)
    files.save_calibration(Calibration((1.0,), 0.1))
    files.remove("kind")
    assert files.load("kind") is None


def test_a_failed_write_leaves_no_file_behind(tmp_path: Path) -> None:
    (tmp_path / "kind.safetensors").mkdir()  # cannot be replaced by a file
    DirectionFiles(tmp_path).save("kind", DIRECTION, REPORT)
    assert os.listdir(tmp_path) == ["kind.safetensors"]

"""Directions and the calibration on disk. Files that cannot be used count as missing."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from inference.interface.protocol import ConceptReport, Effect
from inference.steering.directions import Calibration, Direction, DirectionFiles
from tests.inference.steering.conftest import make_direction

REPORT = ConceptReport(
    works=True,
    summary="It works. – 日本",
    warnings=["careful"],
    num_examples=9,
    num_held_out=4,
    agreement=0.1 + 0.2,
    effects=[Effect(-1.0, -0.7, 1.1), Effect(1.0, 0.7, 1.1)],
    spearman=1.0,
    specificity=None,
    block=2,
    dose=0.1,
)
DIRECTION = make_direction(1, dose=0.1 + 0.2)


def is_same(loaded: tuple[Direction, ConceptReport] | None) -> bool:
    assert loaded is not None
    direction, report = loaded
    return (
        direction.difference.dtype == np.float32
        and np.array_equal(direction.difference, DIRECTION.difference)
        and direction.dose == DIRECTION.dose
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


TENSORS = {"difference": DIRECTION.difference}
METADATA = {"report": json.dumps(json.loads("{}")), "dose": "0.3"}


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        (TENSORS, None),
        (TENSORS, {}),
        (TENSORS, {"dose": "0.3"}),
        (TENSORS, {"report": "REPORT"}),
        (TENSORS, {"report": "{}", "dose": "0.3"}),
        (TENSORS, {"report": "no json", "dose": "0.3"}),
        (TENSORS, {"report": "REPORT", "dose": "much"}),
        (TENSORS, {"report": "REPORT", "dose": "nan"}),
        (TENSORS, {"report": "REPORT", "dose": "inf"}),
        ({}, {"report": "REPORT", "dose": "0.3"}),
        ({"other": DIRECTION.difference}, {"report": "REPORT", "dose": "0.3"}),
    ],
)
def test_a_file_with_other_content_counts_as_missing(
    tmp_path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    files = DirectionFiles(tmp_path)
    files.save("good", DIRECTION, REPORT)
    report = _report_in(tmp_path / "good.safetensors")
    if metadata:
        metadata = {key: report if value == "REPORT" else value for key, value in metadata.items()}
    save_file(tensors, tmp_path / "kind.safetensors", metadata)
    assert files.load("kind") is None
    assert is_same(files.load("good"))


def _report_in(path: Path) -> str:
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header["__metadata__"]["report"]


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

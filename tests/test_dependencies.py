"""Every installed package is pinned, and the hash of its file is known."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "dependencies"
HASHES = {
    pin: digests for pin, *digests in map(str.split, (FOLDER / "hashes.txt").read_text("utf-8").splitlines())
}


def package(name: str, version: str, digest: str) -> dict[str, Any]:
    """A package as in pip's installation report."""
    archive = {"archive_info": {"hashes": {"sha256": digest}}}
    return {"metadata": {"name": name, "version": version}, "download_info": archive}


def audit(tmp_path: Path, *reports: list[dict[str, Any]]) -> tuple[int, str]:
    files = [tmp_path / f"{number}.json" for number, _ in enumerate(reports)]
    for file, installed in zip(files, reports, strict=True):
        file.write_text(json.dumps({"install": installed}))
    command = [sys.executable, FOLDER / "audit.py", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def msgspec() -> tuple[str, str]:
    """The pinned version of msgspec, and one of its hashes."""
    [pin] = [pin for pin in HASHES if pin.startswith("msgspec==")]
    return pin.partition("==")[2], HASHES[pin][0]


def test_every_pin_has_hashes() -> None:
    lines = (FOLDER.parent / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line.lower().replace("_", "-").replace(".", "-") for line in lines if "==" in line]
    assert pins == [pin.replace(".", "-") for pin in HASHES]
    assert all(len(digest) == 64 for digests in HASHES.values() for digest in digests)


def test_locked_packages_pass(tmp_path: Path) -> None:
    here = {"metadata": {"name": "tiller", "version": "1"}, "download_info": {"dir_info": {"editable": True}}}
    torch = package("torch", "2.13.0+cpu", "0" * 64)
    assert audit(tmp_path, [here, torch, package("msgspec", *msgspec())]) == (0, "")


def test_only_the_newest_report_of_a_package_counts(tmp_path: Path) -> None:
    older, newer = package("msgspec", "0.1", "0" * 64), package("msgspec", *msgspec())
    assert audit(tmp_path, [older], [newer], []) == (0, "")
    assert audit(tmp_path, [newer], [older])[0] == 1


def test_empty_reports_fail(tmp_path: Path) -> None:
    status, text = audit(tmp_path, [])
    assert status == 1
    assert "make clean" in text


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        (package("msgspec", msgspec()[0], "0" * 64), "the file with SHA-256 0000"),
        (package("msgspec", "0.1", msgspec()[1]), "msgspec 0.1 is not pinned"),
        (package("left_pad", "1.0", "0" * 64), "left-pad 1.0 is not pinned"),
        (package("torch", "2.12.0", "0" * 64), "torch 2.12.0 is not pinned"),
    ],
)
def test_packages_that_are_not_locked_are_named(
    tmp_path: Path, installed: dict[str, Any], message: str
) -> None:
    status, text = audit(tmp_path, [installed])
    assert status == 1
    assert message in text

"""The playground's libraries are the files that the script wrote, with their licences."""

import hashlib
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENDOR = ROOT / "app" / "playground" / "vendor"


def test_each_file_has_the_recorded_hash() -> None:
    recorded = dict(reversed(line.split()) for line in (VENDOR / "hashes.txt").read_text().splitlines())
    files = {file.name: file for file in VENDOR.iterdir() if file.name != "hashes.txt"}
    assert recorded == {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def test_each_library_has_its_licence() -> None:
    script = runpy.run_path(str(ROOT / "dependencies" / "vendor_playground.py"))
    for package in script["PACKAGES"]:
        for name in package.files.values():
            assert (VENDOR / name).is_file()
        licence = next(iter(package.files.values())).partition(".")[0] + ".LICENSE"
        assert len((VENDOR / licence).read_text()) > 500

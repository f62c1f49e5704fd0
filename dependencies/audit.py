"""Checks that each installed package has the pinned version, and that its file's hash is in hashes.txt.

    python dependencies/audit.py .venv/installed-*.json

The arguments are pip's installation reports, the oldest first. Names each package that fails the check, and
exits with status 1 if there is one. Uses only the standard library.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lock import HASHES, normalized, read_pins

_BUILT_BY_MANY = frozenset({"torch"})
"""Packages with many builds, from several publishers. Only their version is checked."""


def main() -> int:
    pins, hashes = dict(read_pins()), _read_hashes()
    packages: dict[str, Any] = {}
    for file in sys.argv[1:]:
        packages |= {package["metadata"]["name"]: package for package in _read_report(Path(file))}
    faults = [fault for package in packages.values() for fault in _faults(package, pins, hashes)]
    if not packages:
        faults = ["the installation reports are empty: run `make clean`, and then `make audit` again"]
    for fault in faults:
        print(f"audit: {fault}", file=sys.stderr)
    print(f"{len(packages)} installed packages, {len(faults)} faults")
    return 1 if faults else 0


def _read_hashes() -> dict[str, set[str]]:
    lines = HASHES.read_text(encoding="utf-8").splitlines()
    return {pin: set(hashes) for pin, *hashes in map(str.split, lines)}


def _read_report(file: Path) -> list[dict[str, Any]]:
    """The packages that pip installed from an archive. Leaves out Tiller itself, which is a directory."""
    installed = json.loads(file.read_text(encoding="utf-8"))["install"]
    return [package for package in installed if "archive_info" in package["download_info"]]


def _faults(package: dict[str, Any], pins: dict[str, str], hashes: dict[str, set[str]]) -> Iterator[str]:
    name, version = normalized(package["metadata"]["name"]), package["metadata"]["version"]
    if name.startswith("nvidia-"):
        return  # a dependency of torch's CUDA builds
    pinned = pins.get(name)
    if pinned is None or pinned != version.partition("+")[0]:
        yield f"{name} {version} is not pinned in constraints.txt"
    elif name not in _BUILT_BY_MANY:
        digest = package["download_info"]["archive_info"].get("hashes", {}).get("sha256")
        if digest not in hashes.get(f"{name}=={pinned}", set()):
            yield f"{name} {version}: the file with SHA-256 {digest} is not in {HASHES.name}"


if __name__ == "__main__":
    sys.exit(main())

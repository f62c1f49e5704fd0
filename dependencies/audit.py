"""Whether what was installed is what is locked: each package pinned, and its file's hash in hashes.txt.

    python dependencies/audit.py .venv/installed-*.json

The arguments are pip's installation reports, the oldest first. Names what is not, and ends with status 1.
Only the standard library is used.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lock import HASHES, normalized, read_pins

_BUILT_BY_MANY = frozenset({"torch"})
"""There are builds of it for each kind of device, by its makers and others: pinned by version alone."""


def main() -> int:
    pins, hashes = dict(read_pins()), _read_hashes()
    packages: dict[str, Any] = {}
    for file in sys.argv[1:]:
        packages |= {package["metadata"]["name"]: package for package in _read_report(Path(file))}
    faults = [fault for package in packages.values() for fault in _faults(package, pins, hashes)]
    if not packages:
        faults = ["no report says that anything was installed: `make clean`, and then again"]
    for fault in faults:
        print(f"audit: {fault}", file=sys.stderr)
    print(f"{len(packages)} packages were installed, {len(faults)} faults")
    return 1 if faults else 0


def _read_hashes() -> dict[str, set[str]]:
    lines = HASHES.read_text(encoding="utf-8").splitlines()
    return {pin: set(hashes) for pin, *hashes in map(str.split, lines)}


def _read_report(file: Path) -> list[dict[str, Any]]:
    """What was installed from an archive, and not from this directory."""
    installed = json.loads(file.read_text(encoding="utf-8"))["install"]
    return [package for package in installed if "archive_info" in package["download_info"]]


def _faults(package: dict[str, Any], pins: dict[str, str], hashes: dict[str, set[str]]) -> Iterator[str]:
    name, version = normalized(package["metadata"]["name"]), package["metadata"]["version"]
    if name.startswith("nvidia-"):
        return  # what a build of torch for CUDA brings along
    pinned = pins.get(name)
    if pinned is None or pinned != version.partition("+")[0]:
        yield f"{name} {version} is not pinned in constraints.txt"
    elif name not in _BUILT_BY_MANY:
        digest = package["download_info"]["archive_info"].get("hashes", {}).get("sha256")
        if digest not in hashes.get(f"{name}=={pinned}", set()):
            yield f"{name} {version}: the file with SHA-256 {digest} is not in {HASHES.name}"


if __name__ == "__main__":
    sys.exit(main())

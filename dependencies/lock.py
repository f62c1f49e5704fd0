"""Writes hashes.txt: the SHA-256 of every file that may be installed for a pin in constraints.txt.

    python dependencies/lock.py INDEX        # the URL of a package index's simple API

Run it when a pin changes. Uses only the standard library.
"""

import html
import re
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
HASHES = Path(__file__).with_name("hashes.txt")

_LINK = re.compile(r'href="[^"]*#sha256=([0-9a-f]{64})"[^>]*>([^<]+)</a>')
_ELSEWHERE = re.compile(r"win32|win_amd64|win_arm64|musllinux|i686|ppc64le|s390x|armv7l|riscv64|-pp3|cp3\d?t")
_OLDER_PYTHON = re.compile(r"-cp(2\d|3\d|310)-cp(2\dm?|3\dm?|310)-")


def main() -> None:
    index = sys.argv[1].rstrip("/")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pin: _hashes(index, *pin), read_pins()))
    pairs = zip(read_pins(), found, strict=True)
    lines = [f"{name}=={version} {' '.join(hashes)}" for (name, version), hashes in pairs]
    HASHES.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_pins() -> list[tuple[str, str]]:
    """The pinned names and versions, in the order of constraints.txt."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pins = [line.split("#")[0].strip().partition("==") for line in lines]
    return [(normalized(name), version) for name, _, version in pins if version]


def normalized(name: str) -> str:
    """The name as package indexes spell it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _hashes(index: str, name: str, version: str) -> list[str]:
    with urllib.request.urlopen(f"{index}/{name}/", timeout=60) as answer:  # noqa: S310 - the user chooses the URL
        links = _LINK.findall(answer.read().decode())
    files = [(html.unescape(file).strip(), digest) for digest, file in links]
    found = sorted(digest for file, digest in files if _is_wanted(file, name, version))
    if not found:
        sys.exit(f"{index} has no file of {name} {version} for Linux or macOS")
    return found


def _is_wanted(file: str, name: str, version: str) -> bool:
    project, _, rest = (
        file.removesuffix(".tar.gz").rpartition("-") if file.endswith(".tar.gz") else file.partition("-")
    )
    if normalized(project) != name or rest.split("-")[0] != version:
        return False
    return (
        file.endswith((".whl", ".tar.gz")) and not _ELSEWHERE.search(file) and not _OLDER_PYTHON.search(file)
    )


if __name__ == "__main__":
    main()

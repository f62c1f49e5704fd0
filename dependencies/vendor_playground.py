"""Writes app/playground/vendor: the libraries of the playground, as ES modules that a browser loads directly.

    python dependencies/vendor_playground.py [REGISTRY]      # default: https://registry.npmjs.org

Downloads the pinned npm packages, checks each tarball's SHA-512, and copies the files named in PACKAGES and
the licences. A browser cannot resolve `from "preact"` without an inline import map, which the page's
Content-Security-Policy forbids. So this script replaces such names with relative URLs. At the end it writes
hashes.txt, which `sha256sum --check` and the tests read. Uses only the standard library.
"""

import base64
import hashlib
import io
import re
import sys
import tarfile
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

VENDOR = Path(__file__).parents[1] / "app" / "playground" / "vendor"
HASHES = VENDOR / "hashes.txt"


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    integrity: str
    """SHA-512 of the tarball in base64, as npm's `dist.integrity` has it."""
    files: dict[str, str]
    """Path in the package: name in `vendor`."""
    imports: dict[str, str] = field(default_factory=dict)
    """Module name in an import: file in `vendor`."""
    is_umd: bool = False
    """The files are no ES modules. They get a default export."""


PACKAGES = (
    Package(
        name="preact",
        version="11.2.0",
        integrity="sha512-/HfHI/7N84e6GrWBJ3J280z3mLaRJiDcSvj/A+y/4AbLnND/1UlGHe1sR6oYuTGwId0nP7dqDU9OnLxMPZ7xBg==",
        files={"dist/preact.mjs": "preact.js", "hooks/dist/hooks.mjs": "preact-hooks.js"},
        imports={"preact": "preact.js"},
    ),
    Package(
        name="@preact/signals-core",
        version="1.14.5",
        integrity="sha512-vcRv7Ityz5JVmeiVqIluLFzT/PDS/AlhHUpw3/aUWqcVUs6bDGIPXE/6RSC4evBNWYvnniozg5Syfj33al3gkg==",
        files={"dist/signals-core.mjs": "signals-core.js"},
    ),
    Package(
        name="@preact/signals",
        version="2.11.4",
        integrity="sha512-Rb+5RPo9gWSaHtzJeauhHxiC8KP/IF2DEPkHPEOGOnuy2wnJzRqyeLRankUCYd6ADqtxS6GnWGv6Ie343d8aYw==",
        files={"dist/signals.mjs": "signals.js"},
        imports={
            "preact": "preact.js",
            "preact/hooks": "preact-hooks.js",
            "@preact/signals-core": "signals-core.js",
        },
    ),
    Package(
        name="htm",
        version="3.1.1",
        integrity="sha512-983Vyg8NwUE7JkZ6NmOqpCZ+sh1bKv2iYTlUkzlWmA5JD2acKoxd4KVxbMmxX/85mtfdnDmTFoNKcg5DGAvxNQ==",
        files={"dist/htm.mjs": "htm.js"},
    ),
    Package(
        name="uplot",
        version="1.6.32",
        integrity="sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==",
        files={"dist/uPlot.esm.js": "uplot.js", "dist/uPlot.min.css": "uplot.css"},
    ),
    Package(
        name="papaparse",
        version="5.7.1",
        integrity="sha512-qOR+UDWv6D3hMxnWWOk0ZpBdCkd+kw5Yh7aXOaNSQU8A+73EA2bhW7EiUix/hY0yulUi5FRvt7PpYSI2VDvY0g==",
        files={"papaparse.min.js": "papaparse.js"},
        is_umd=True,
    ),
    Package(
        name="js-yaml",
        version="5.5.0",
        integrity="sha512-paNr4LFIFPjeeSmwNYdrb8FafLLG/Cr2Af3GjbsHJ5CxIjH4r0c2emlmRdAtpPAieP1gRVzk6buBbVP5gBMGAg==",
        files={"dist/browser/js-yaml.esm.min.mjs": "js-yaml.js"},
    ),
)

_UMD = ("const module = { exports: {} }, exports = module.exports;\n", "\nexport default module.exports;\n")
_SOURCE_MAP = re.compile(r"\n?//# sourceMappingURL=\S+\s*$")


def main() -> None:
    registry = (sys.argv[1] if len(sys.argv) > 1 else "https://registry.npmjs.org").rstrip("/")
    VENDOR.mkdir(exist_ok=True)
    for file in VENDOR.iterdir():
        file.unlink()
    for package in PACKAGES:
        _write(package, _download(registry, package))
    files = sorted(VENDOR.iterdir())
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in files]
    HASHES.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _download(registry: str, package: Package) -> bytes:
    """The package's tarball. Exits if its hash is not the pinned one."""
    file = f"{package.name.rpartition('/')[2]}-{package.version}.tgz"
    url = f"{registry}/{package.name}/-/{file}"
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - the user chooses the URL
        content: bytes = answer.read()
    found = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != package.integrity:
        sys.exit(f"{url} has the hash {found}, but {package.integrity} is pinned")
    return content


def _write(package: Package, tarball: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        for path, name in package.files.items():
            (VENDOR / name).write_text(_as_module(package, _read(archive, path)), encoding="utf-8")
        licence = VENDOR / f"{next(iter(package.files.values())).partition('.')[0]}.LICENSE"
        licence.write_text(_read(archive, "LICENSE"), encoding="utf-8")


def _read(archive: tarfile.TarFile, path: str) -> str:
    member = archive.extractfile(f"package/{path}")
    if member is None:
        sys.exit(f"the package has no file {path}")
    return member.read().decode()


def _as_module(package: Package, source: str) -> str:
    source = _SOURCE_MAP.sub("\n", source)
    for name, file in package.imports.items():
        source = re.sub(rf"""from\s*["']{re.escape(name)}["']""", f'from "./{file}"', source)
    return _UMD[0] + source + _UMD[1] if package.is_umd else source


if __name__ == "__main__":
    main()

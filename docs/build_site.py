"""Builds the documentation's site: `make docs`.

Prepares the pages in build/docs, with links that work there, and lets Zensical build build/site from them.
The pages are README.md, CONTRIBUTING.md, the files in docs, the HTTP reference, and a page for each file of
the repository that they link to. docs/zensical.toml has the navigation.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from docs import http_reference

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {
    ROOT / "README.md": "index.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
    **{page: page.name for page in DOCS.glob("*.md")},
}
"""The pages, and their names on the site."""
PICTURES = (".svg", ".png")
STYLES = (".css",)
LANGUAGES = {
    ".yaml": "yaml",
    ".toml": "toml",
    ".json": "json",
    ".py": "python",
    ".sh": "sh",
    ".jinja": "jinja",
}
CODE = ("app", "benchmarks", "inference", "tests", "tiller")
"""The search leaves out the files of these folders: they would hide the documentation."""
_UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n"
_FENCE = re.compile(r"^( *)```")
_CODE = re.compile(r"`[^`]*`")
_LINK = re.compile(r'(\]\(|\b(?:src|srcset|href)=")(?![a-z]+:|#)([^)#\s"]+)(#[^)"\s]*)?(?=[)"])')
"""A link or picture, in Markdown or HTML, to another file."""


class Site:
    """The prepared pages, in the folder `target`."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._linked: set[Path] = set()
        """The files and folders of the repository that pages link to."""

    def prepare(self) -> None:
        """Raises FileNotFoundError if a page links to something that does not exist."""
        shutil.rmtree(self._target, ignore_errors=True)
        self._target.mkdir(parents=True)
        for page, name in PAGES.items():
            self._write(name, page.read_text(encoding="utf-8"), page.parent)
        self._write("http-reference.md", http_reference.render(http_reference.read_document()), DOCS)
        for file in DOCS.rglob("*"):
            if file.suffix in (*PICTURES, *STYLES):
                copy = self._target / file.relative_to(DOCS)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)
        self._write_sources()

    def _write(self, name: str, text: str, folder: Path) -> None:
        lines = [
            line if is_code else _LINK.sub(partial(self._place, folder), _unescape(line))
            for line, is_code in lines_of(text)
        ]
        (self._target / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _place(self, folder: Path, link: re.Match[str]) -> str:
        """The link for the site, where all pages are in one folder."""
        opening, path, part = link.groups(default="")
        named = (folder / path).resolve()
        if named in PAGES:
            place = PAGES[named]
        elif named.suffix in PICTURES:
            place = named.relative_to(DOCS).as_posix()
        elif not named.exists():
            raise FileNotFoundError(f"{folder}: {path} does not exist")
        else:
            self._linked.add(named)
            place = f"source/{_source_name(named)}"
        return f"{opening}{place}{part}"

    def _write_sources(self) -> None:
        """A page for each linked file. A folder's page lists its files."""
        files = {file for linked in self._linked for file in _files(linked)}
        (self._target / "source").mkdir()
        for file in files:
            self._write_source(file, _code(file))
        for folder in self._linked - files:
            self._write_source(folder, _list(_files(folder)))
        (self._target / "source" / "index.md").write_text(
            f"# Linked files\n\nFiles of the repository that the other pages link to.\n\n{_list(files)}\n"
        )

    def _write_source(self, file: Path, content: str) -> None:
        page = self._target / "source" / _source_name(file)
        name = file.relative_to(ROOT)
        header = _UNSEARCHED if name.parts[0] in CODE else ""
        page.write_text(f"{header}# {name}\n\n{content}\n", encoding="utf-8")


def lines_of(text: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is in a block of code."""
    is_code = False
    for line in text.splitlines():
        is_fence = bool(_FENCE.match(line))
        yield line, is_code or is_fence
        is_code ^= is_fence


def _unescape(line: str) -> str:
    """The row of a table. GitHub needs a backslash before a pipe in code; Python-Markdown would show it."""
    return _CODE.sub(lambda code: code[0].replace(r"\|", "|"), line) if line.startswith("|") else line


def _files(place: Path) -> list[Path]:
    """The file, or those in the folder."""
    if place.is_file():
        return [place]
    return [file for file in place.rglob("*") if file.is_file() and "__pycache__" not in file.parts]


def _source_name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix().replace("/", "-") + ".md"


def _list(files: list[Path] | set[Path]) -> str:
    return "\n".join(f"- [{file.relative_to(ROOT)}]({_source_name(file)})" for file in sorted(files))


def _code(file: Path) -> str:
    language = LANGUAGES.get(file.suffix, "text")
    return f"````{language}\n{file.read_text(encoding='utf-8')}````"


def build(target: Path) -> int:
    """Builds `target`/site. Returns the exit status of Zensical, which is 1 if a link leads nowhere."""
    Site(target / "docs").prepare()
    config = Path(shutil.copy(DOCS / "zensical.toml", target))
    shutil.rmtree(target / "site", ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", config.name]
    return subprocess.run(command, cwd=target, check=False).returncode  # noqa: S603 - nothing from outside


def main() -> int:
    status = build(ROOT / "build")
    if status == 0:
        print("Open build/site/index.html, or run: python3 -m http.server --directory build/site")
    return status


if __name__ == "__main__":
    sys.exit(main())

"""The code blocks of the documentation, and the commands and outputs in them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in ROOT.glob("docs/*.md")))
SHELL = ("console", "sh")


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0]

    def commands(self) -> Iterator[tuple[str, str]]:
        """Each command of a block of the shell, and the output that the page shows for it.

        In `console`, a command begins with `$ ` and goes on while its quotes are open or its lines end
        with a backslash. A block of `sh` is one command.
        """
        if self.language == "sh":
            yield self.text, ""
            return
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, output = "", part
            while not command or is_open(command):
                line, _, output = output.partition("\n")
                command += line + "\n"
            yield command.strip(), output.strip()


def is_open(command: str) -> bool:
    """Whether the command goes on in the next line."""
    return command.endswith("\\\n") or command.count("'") % 2 == 1


def parse(page: str, text: str) -> list[Block]:
    fences = [
        token for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text) if token.type == "fence"
    ]
    return [Block(page, (token.map or [0])[0] + 1, token.info.strip(), token.content) for token in fences]


@cache
def blocks_of(page: str) -> list[Block]:
    return parse(page, (ROOT / page).read_text(encoding="utf-8"))


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page)]

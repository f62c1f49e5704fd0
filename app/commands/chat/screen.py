"""Where a chat writes: answers to stdout, and everything else to stderr. Knows no server."""

import io
import sys
from collections.abc import Generator, Iterable
from contextlib import nullcontext

from rich.console import Console
from rich.table import Table
from rich.text import Text

_SHOWN = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Screen:
    """On a terminal, an answer's control characters are shown as `\\x1b`, so that none has an effect."""

    def __init__(self) -> None:
        self._notes = Console(stderr=True, highlight=False)
        self.is_terminal = sys.stdout.isatty()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")

    def answer(self, pieces: Iterable[str]) -> Generator[str, None, None]:
        """Writes the pieces of an answer as they come, and yields each of them. Shows that it waits."""
        waiting = self._notes.status("waiting for the answer") if self._notes.is_terminal else nullcontext()
        ends_line = True
        try:
            remaining = iter(pieces)
            with waiting:
                piece = next(remaining, None)
            while piece is not None:
                self._write(piece)
                ends_line = piece.endswith("\n")
                yield piece
                piece = next(remaining, None)
        finally:
            if not ends_line:
                self._write("\n")

    def note(self, text: str) -> None:
        self._notes.print(Text(text, style="dim"), soft_wrap=True)

    def error(self, text: str) -> None:
        self._notes.print(Text(text, style="red"), soft_wrap=True)

    def table(self, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        table = Table(*columns)
        for row in rows:
            table.add_row(*map(Text, row))
        self._notes.print(table)

    def end_line(self) -> None:
        self._notes.print()

    def _write(self, text: str) -> None:
        sys.stdout.write(text.translate(_SHOWN) if self.is_terminal else text)
        sys.stdout.flush()

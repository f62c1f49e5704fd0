"""A log handler for a terminal: it draws the progress of long work as a bar below the log lines.

It redraws the last line of the terminal, and changes nothing else there. So nothing has to be restored if the
process is killed. Only one process at a time may draw bars on a terminal.
"""

import logging

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from inference.interface.progress import Progress, progress_of

_CLEAR_LINE = "\r\x1b[K"
_OTHER_WIDTH = 20
"""Columns for the bar and the number, however long the name is."""
_COLUMNS = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"))


class BarHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to stderr. Of several works at a time, it shows the one that has begun last."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._shown: Progress | None = None

    def emit(self, record: logging.LogRecord) -> None:
        progress = progress_of(record)
        if progress is None:
            self._clear()
            super().emit(record)
        elif self._is_behind(progress):
            return
        elif progress.has_ended:
            self._clear()
        else:
            self.stream.write(_CLEAR_LINE + self._draw(progress))
            self.flush()
            self._shown = progress

    def _is_behind(self, progress: Progress) -> bool:
        """Whether another work is shown that has begun later."""
        shown = self._shown
        return shown is not None and shown.what != progress.what and shown.seconds < progress.seconds

    def _clear(self) -> None:
        if self._shown is not None:
            self.stream.write(_CLEAR_LINE)
            self.flush()
            self._shown = None

    def _draw(self, progress: Progress) -> str:
        """One line, without its end."""
        done, total = progress.amount or (0, None)
        share = f"{done / total:4.0%}" if total else f"{progress.seconds:.0f} s"
        bars = Bars(*_COLUMNS, console=self._console, auto_refresh=False)
        longest = max(1, self._console.width - _OTHER_WIDTH)
        what = progress.what if len(progress.what) <= longest else f"{progress.what[: longest - 1]}…"
        bars.add_task(what, total=total, completed=done, done=share)
        with self._console.capture() as drawn:
            self._console.print(bars.get_renderable(), no_wrap=True, overflow="ellipsis")
        return drawn.get().partition("\n")[0].rstrip()

"""Reads what a person types, with the line editing and the history of readline. Knows no chat."""

import sys
from collections.abc import Callable, Sequence

Complete = Callable[[str], Sequence[str]]
"""The line before a word -> the words that may stand there."""

_CONTINUED = "\\"
_LABEL_OF_MORE = "... "


class Prompt:
    """The history lasts as long as the process: nothing is stored."""

    def __init__(self, complete: Complete) -> None:
        self._shows_label = sys.stdout.isatty()
        _edit_lines(complete)

    def read(self, label: str) -> str:
        """One line, or several lines of which all but the last end with a backslash.

        A pasted text may have several lines, too. Ctrl-C drops what has been typed: then the text is empty.
        Raises EOFError, and KeyboardInterrupt if there was nothing to drop.
        """
        lines: list[str] = []
        try:
            lines.append(self._read_line(label))
            while lines[-1].endswith(_CONTINUED):
                lines[-1] = lines[-1].removesuffix(_CONTINUED)
                lines.append(self._read_line(_LABEL_OF_MORE))
        except KeyboardInterrupt:
            if not lines and not _typed():
                raise
            sys.stderr.write("\n")
            return ""
        return "\n".join(lines)

    def _read_line(self, label: str) -> str:
        if self._shows_label:
            return input(label)
        sys.stderr.write(label)  # stdout has the answers only
        sys.stderr.flush()
        return input()


def _typed() -> str:
    """What the interrupted line had so far."""
    try:
        import readline
    except ImportError:
        return ""
    return readline.get_line_buffer()


def _edit_lines(complete: Complete) -> None:
    """Sets up readline. Without it, `input` reads lines that cannot be edited."""
    try:
        import readline
    except ImportError:  # some builds of Python have none
        return
    found: list[str] = []

    def next_word(begin: str, number: int) -> str | None:
        if number == 0:
            before = readline.get_line_buffer()[: readline.get_begidx()]
            found[:] = [f"{word} " for word in complete(before) if word.startswith(begin)]
        return found[number] if number < len(found) else None

    readline.set_completer(next_word)
    readline.set_completer_delims(" ")
    if "libedit" in (readline.__doc__ or ""):  # macOS
        readline.parse_and_bind("bind ^I rl_complete")
        return
    readline.parse_and_bind("tab: complete")
    readline.parse_and_bind("set enable-bracketed-paste on")

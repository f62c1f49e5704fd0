"""Checks of what the command line prints."""

from click.testing import Result


def assert_one_line(result: Result, *words: str) -> None:
    """The command failed with one line, which has these words."""
    assert (result.exit_code, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("tiller: ")
    for word in words:
        assert word in line

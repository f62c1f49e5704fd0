"""Checks of what the command line prints."""

from click.testing import Result


def assert_one_line(result: Result, *words: str, status: int = 1) -> None:
    """The command failed with this exit status and one line, which has these words."""
    assert (result.exit_code, result.stdout) == (status, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("tiller: ")
    for word in words:
        assert word in line

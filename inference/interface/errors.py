"""The errors of models that are not available, and how errors of other libraries are told."""

_LONGEST = 500


class SourceError(Exception):
    """The model is not available. The message is one line for the operator."""


class MissingSourceError(SourceError):
    """`model.source` is a path, and nothing is there."""


def in_one_line(error: Exception) -> str:
    """The type and the message of an error that is not ours."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]

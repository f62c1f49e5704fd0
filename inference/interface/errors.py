"""The errors of models that are not available."""


class SourceError(Exception):
    """The model is not available. The message is one line for the operator."""


class MissingSourceError(SourceError):
    """`model.source` is a path, and nothing is there."""

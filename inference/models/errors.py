"""The error of a model that the engine cannot run."""


class UnsupportedModelError(Exception):
    """The model needs something that the engine does not support. The message says what."""

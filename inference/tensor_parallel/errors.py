"""The error of a group that cannot go on."""


class BrokenGroupError(Exception):
    """The processes of a group no longer compute the same step, so all of them have to end. One line."""

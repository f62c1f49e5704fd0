"""What can go wrong with a cluster."""


class ClusterError(Exception):
    """A cluster command cannot go on. The message is one line for the operator."""

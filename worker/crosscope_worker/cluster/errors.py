"""The error of this room."""


class ClusterError(ValueError):
    """A Ray cluster cannot be used as asked; the sentence says why, and what to do."""

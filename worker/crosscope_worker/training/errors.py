"""What training refuses."""


class TrainingError(ValueError):
    """A training that cannot go on; the message says why and what to change."""

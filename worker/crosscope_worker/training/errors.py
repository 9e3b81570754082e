"""The error of a training."""


class TrainingError(ValueError):
    """A training that cannot continue; the message says why and what to change."""

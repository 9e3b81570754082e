"""Training a crosscoder from a stream of activations."""

from crosscope_worker.training.checkpoint import newest_step, remove_partial
from crosscope_worker.training.errors import TrainingError
from crosscope_worker.training.loop import TrainingResult, num_streams, saved_result, train, train_together

__all__ = [
    "TrainingError",
    "TrainingResult",
    "newest_step",
    "num_streams",
    "remove_partial",
    "saved_result",
    "train",
    "train_together",
]

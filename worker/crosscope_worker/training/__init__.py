"""Training a crosscoder from a stream of activations."""

from crosscope_worker.training.errors import TrainingError
from crosscope_worker.training.loop import TrainingResult, saved_result, train

__all__ = ["TrainingError", "TrainingResult", "saved_result", "train"]

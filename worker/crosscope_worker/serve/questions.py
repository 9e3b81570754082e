"""What the device is asked; questions that are equal are answered in one batch. Knows no queue and no gRPC."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from crosscope_worker.effects.compare import Comparison, compare
from crosscope_worker.serve.batching import Batcher
from crosscope_worker.serve.encoding import PromptCode
from crosscope_worker.serve.loading import Loaded, LoadedCrosscoder


class Question(Protocol):
    """Something to find out about prompts. Called on the device's thread."""

    def __call__(self, prompts: Sequence[np.ndarray]) -> Sequence[Any]:
        """The answer for each of `prompts`, [pos] int64 ids."""
        ...


DeviceQueue = Batcher[Question, np.ndarray, Any]


def ask(question: Question, prompts: Sequence[np.ndarray]) -> Sequence[Any]:
    """The answers of a batch; the batcher runs this on the device's thread."""
    return question(prompts)


@dataclass(frozen=True)
class WhichCode:
    """Which latents fire on each token."""

    crosscoder: LoadedCrosscoder

    def __call__(self, prompts: Sequence[np.ndarray]) -> list[PromptCode]:
        """See Question."""
        return self.crosscoder.encoder(prompts)


@dataclass(frozen=True)
class WhichDifference:
    """How the models' predictions differ at each token."""

    loaded: Loaded
    top_n: int

    def __call__(self, prompts: Sequence[np.ndarray]) -> list[Comparison]:
        """See Question."""
        return compare(self.loaded.subject, prompts, self.top_n)

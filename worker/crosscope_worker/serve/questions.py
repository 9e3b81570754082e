"""What the device is asked; questions that are equal are answered in one batch. Knows no queue and no gRPC."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from crosscope_worker.effects.attribute import Attribution, attribute
from crosscope_worker.effects.attribute import Question as AttributionQuestion
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


@dataclass(frozen=True, eq=False)
class WhichLatents:
    """Which latents carry a difference at some tokens of a prompt; no two questions share a batch."""

    crosscoder: LoadedCrosscoder
    roles: np.ndarray
    """[pos] uint8, TokenRole."""
    about: AttributionQuestion

    @property
    def num_tokens(self) -> int:
        """About how many tokens are run: a forward and a backward pass, and a forward for every exact effect."""
        return len(self.roles) * (2 + self.about.num_exact)

    def __call__(self, prompts: Sequence[np.ndarray]) -> list[Attribution]:
        """See Question."""
        return [attribute(self.crosscoder.subject, ids, self.roles, self.about) for ids in prompts]

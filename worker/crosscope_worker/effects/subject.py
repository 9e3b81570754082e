"""What is asked about: a pair of models and, for most questions, one layer of it and a crosscoder.

Knows no texts and no requests.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT, LeftOut
from crosscope_proto.specs import Float32, TokenPolicy
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.sparsifier import Sparsifier
from crosscope_worker.dictionary.streams import model_slice
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.norms import NormBounds
from crosscope_worker.models.pair import Pair
from crosscope_worker.models.upper_half import UpperHalf, WholeModel
from crosscope_worker.precision import float32_products
from crosscope_worker.tokenizer.token_policy import policy_reasons


@dataclass(frozen=True, eq=False)
class Reading:
    """A layer of a pair, read by a crosscoder."""

    layer: int
    crosscoder: Crosscoder
    maxima: Tensor
    """[latent] float32: the largest scaled activation of each in the analysis; NaN or 0 where it never fired."""
    policy: TokenPolicy
    """The policy by which the training left tokens out."""
    bounds: NormBounds | None = None
    """The training's bounds of norms; None: no token is left out because of its norm."""
    float32: Float32 | None = None
    """How the crosscoder's products are made; None: as the process makes all others."""

    @cached_property
    def sparsifier(self) -> Sparsifier:
        """The crosscoder's, worked out once."""
        return self.crosscoder.sparsifier()

    def products(self) -> AbstractContextManager[None]:
        """Within it, products are made as the crosscoder's are. Models run outside: some make angles by products."""
        return nullcontext() if self.float32 is None else float32_products(self.float32)

    def outlying(self, x: Tensor, positions: Tensor, d_model: tuple[int, int]) -> Tensor:
        """[token] bool: the training leaves the token out because of its norm. x: [token, both]."""
        if self.bounds is None:
            return torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return self.bounds.outlying(x, positions, d_model)

    def left_out(self, x: Tensor, roles: np.ndarray) -> Tensor:
        """[pos] bool: the training leaves out such tokens of a text. x: [pos, both]; roles: [pos] uint8, TokenRole."""
        by_role = torch.from_numpy(policy_reasons(roles, self.policy) != LeftOut.KEPT).to(x.device)
        return by_role | self.outlying(x, torch.arange(len(x), device=x.device), self.crosscoder.d_model)

    def outlying_in(self, model: int, x: Tensor, positions: Tensor) -> Tensor:
        """The same where one model's stream alone is known, x: [token, d_model]; see NormBounds.outlying_in."""
        if self.bounds is None:
            return torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return self.bounds.outlying_in(model, x, positions)


@dataclass(frozen=True, eq=False)
class Subject:
    """A pair, and the crosscoder that reads it; None where the models alone are asked about. Not thread-safe."""

    pair: Pair
    reading: Reading | None = None

    @cached_property
    def activations(self) -> PairActivations:
        """Both models up to the layer; without a reading, up to the highest layer that both have."""
        return PairActivations(self.pair, self.reading.layer if self.reading else self.pair.num_layers - 1)

    def model_slice(self, model: int) -> slice:
        """Where a model's residual stream lies on the axis `both`."""
        return model_slice(model, self.pair.d_model)

    @cached_property
    def wholes(self) -> tuple[WholeModel, WholeModel]:
        """Both models with their heads apart. Raises PairError for a model that cannot be run like that."""
        base, chat = (WholeModel(model) for model in self.pair.models)
        return base, chat

    @cached_property
    def vocabularies(self) -> tuple[int, int]:
        """Number of each model's logits. Raises PairError as `wholes`."""
        return self.wholes[BASE].check(), self.wholes[CHAT].check()

    @cached_property
    def uppers(self) -> tuple[UpperHalf, UpperHalf]:
        """Both models above the layer. Raises PairError for a model that cannot be run from there on."""
        assert self.reading is not None
        base, chat = (UpperHalf(model, self.reading.layer) for model in self.pair.models)
        return base, chat

"""How well a crosscoder reconstructs the held-out tokens (math §7).

FVE per model over all tokens, and over tokens without outliers, whose norms would dominate it. FVE does not depend on
`input_scale`: it is a factor of both sums. Knows nothing about latents.
"""

import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.analysis.block import Block
from crosscope_worker.dictionary.crosscoder import Crosscoder

OUTLIER_RATIO = 10.0
"""A token is an outlier if its norm in either model is more than this many times the median norm of the first block."""


class Quality:
    """Accumulates sums of squares, block by block."""

    def __init__(self, crosscoder: Crosscoder) -> None:
        self._crosscoder = crosscoder
        both = sum(crosscoder.d_model)
        self._limits: list[Tensor] | None = None
        self._tokens = [0, 0]
        self._sum, self._squares, self._errors = (
            torch.zeros(2, both, dtype=torch.float64, device=crosscoder.device) for _ in range(3)
        )
        self._num_active = 0

    def add(self, block: Block) -> None:
        """Adds the tokens of a block."""
        norms = [block.x[:, self._crosscoder.model_slice(model)].norm(dim=1) for model in (BASE, CHAT)]
        if self._limits is None:
            self._limits = [OUTLIER_RATIO * norm.median() for norm in norms]
        inlier = (norms[BASE] <= self._limits[BASE]) & (norms[CHAT] <= self._limits[CHAT])
        self._num_active += len(block.latents)
        for group, keep in enumerate((torch.ones_like(inlier), inlier)):
            x = self._crosscoder.streams.target(block.x[keep], self._crosscoder.d_model).double()
            error = block.error[keep].double()
            self._tokens[group] += len(x)
            self._sum[group] += x.sum(dim=0)
            self._squares[group] += x.square().sum(dim=0)
            self._errors[group] += error.square().sum(dim=0)

    def metrics(self) -> dict[str, float]:
        """The figures fve_base and fve_chat (only reconstructed models) or fve_difference, the same `_inliers`,
        outlier_share and l0.
        """
        result = {
            "l0": self._num_active / self._tokens[0],
            "outlier_share": 1 - self._tokens[1] / self._tokens[0],
        }
        for group, suffix in enumerate(("", "_inliers")):
            centred = self._squares[group] - self._sum[group].square() / self._tokens[group]
            for model, name in self._crosscoder.streams.figures:
                piece = self._crosscoder.model_slice(model)
                variance, error = float(centred[piece].sum()), float(self._errors[group, piece].sum())
                result[f"fve_{name}{suffix}"] = 1 - error / variance if variance > 0 else float("nan")
        return result

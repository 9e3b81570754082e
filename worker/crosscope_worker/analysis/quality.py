"""How well a crosscoder reconstructs the held-out tokens (math §7).

FVE per model over all tokens, and over tokens without outliers, whose norms would dominate it. FVE does not depend on
`input_scale`: it is a factor of both sums. Knows nothing about latents.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.analysis.block import Block
from crosscope_worker.dictionary.crosscoder import Crosscoder

OUTLIER_RATIO = 10.0
"""A token is an outlier if its norm in either model is more than this many times the median norm of the first block."""

Limits = tuple[float, float]
"""Largest norm of a scaled input, for each model, that is no outlier."""
_SUMS = ("tokens", "sum", "squares", "errors", "num_active")


def outlier_limits(crosscoder: Crosscoder, block: Block) -> Limits:
    """The limits that follow from the analysis's first block."""
    base, chat = (OUTLIER_RATIO * norm.median() for norm in _norms(crosscoder, block))
    return float(base), float(chat)


class Quality:
    """Accumulates sums of squares, block by block. Sums of several passes over different texts merge."""

    def __init__(self, crosscoder: Crosscoder, limits: Limits | None = None) -> None:
        """`limits` None: they follow from the first block that is added."""
        self._crosscoder = crosscoder
        both = sum(crosscoder.d_model)
        self._limits = limits
        self._tokens = torch.zeros(2, dtype=torch.int64)
        self._sum, self._squares, self._errors = (
            torch.zeros(2, both, dtype=torch.float64, device=crosscoder.device) for _ in range(3)
        )
        self._num_active = torch.zeros((), dtype=torch.int64)

    def add(self, block: Block) -> None:
        """Adds the tokens of a block."""
        if self._limits is None:
            self._limits = outlier_limits(self._crosscoder, block)
        norms = _norms(self._crosscoder, block)
        inlier = (norms[BASE] <= self._limits[BASE]) & (norms[CHAT] <= self._limits[CHAT])
        self._num_active += len(block.latents)
        for group, keep in enumerate((torch.ones_like(inlier), inlier)):
            x = self._crosscoder.streams.target(block.x[keep], self._crosscoder.d_model).double()
            error = block.error[keep].double()
            self._tokens[group] += len(x)
            self._sum[group] += x.sum(dim=0)
            self._squares[group] += x.square().sum(dim=0)
            self._errors[group] += error.square().sum(dim=0)

    def state(self) -> dict[str, Tensor]:
        """All sums by name."""
        return {name: getattr(self, f"_{name}") for name in _SUMS}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a saved state of the same crosscoder."""
        for name, sums in state.items():
            getattr(self, f"_{name}").copy_(sums)

    def merge(self, other: "Quality") -> None:
        """Adds the sums over other texts, with the same limits."""
        for name in _SUMS:
            getattr(self, f"_{name}").add_(getattr(other, f"_{name}"))

    def metrics(self) -> dict[str, float]:
        """The figures fve_base and fve_chat (only reconstructed models) or fve_difference, the same `_inliers`,
        outlier_share and l0.
        """
        result = {
            "l0": int(self._num_active) / int(self._tokens[0]),
            "outlier_share": 1 - int(self._tokens[1]) / int(self._tokens[0]),
        }
        for group, suffix in enumerate(("", "_inliers")):
            centred = self._squares[group] - self._sum[group].square() / int(self._tokens[group])
            for model, name in self._crosscoder.streams.figures:
                piece = self._crosscoder.model_slice(model)
                variance, error = float(centred[piece].sum()), float(self._errors[group, piece].sum())
                result[f"fve_{name}{suffix}"] = 1 - error / variance if variance > 0 else float("nan")
        return result


def _norms(crosscoder: Crosscoder, block: Block) -> list[Tensor]:
    """The norms of each model's part of the inputs, [token] each."""
    return [block.x[:, crosscoder.model_slice(model)].norm(dim=1) for model in (BASE, CHAT)]

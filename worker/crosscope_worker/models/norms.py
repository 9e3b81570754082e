"""Tokens whose activation norm is an outlier, attention sinks above all: found from the data, then left out (math §7).

Does not know where activations come from.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscope_proto.roles import MODEL_NAMES
from crosscope_worker.transfer import sent

SINK_POSITIONS = 16
"""Number of positions at a text's beginning that may be sinks."""
MIN_TEXTS = 8
"""A position's median counts if at least so many texts reach the position."""


@dataclass(frozen=True)
class NormBounds:
    """What counts as an outlier at one layer of a pair."""

    limits: tuple[float, float]
    """Largest norm of an activation, for each model, that is not an outlier."""
    positions: tuple[int, ...] = ()
    """Positions whose median norm is an outlier in a model; every token there is left out."""

    def outlying(self, x: Tensor, position: Tensor, d_model: tuple[int, int]) -> Tensor:
        """Which tokens are outliers, [token] bool; `x: [token, both]`, `position: [token]` in the text."""
        found = torch.isin(position, self._positions(position))
        for part, limit in zip(x.split(d_model, dim=-1), self.limits, strict=True):
            found |= part.norm(dim=-1) > limit
        return found

    def outlying_in(self, model: int, x: Tensor, position: Tensor) -> Tensor:
        """The same where one model's stream alone is known; `x: [token, d_model]`.

        Finds no token that is an outlier in the other model alone.
        """
        return torch.isin(position, self._positions(position)) | (x.norm(dim=-1) > self.limits[model])

    def _positions(self, like: Tensor) -> Tensor:
        return sent(torch.tensor(self.positions, dtype=like.dtype), like.device)


def measured_bounds(
    pieces: Sequence[tuple[Tensor, np.ndarray]], d_model: tuple[int, int], ratio: float
) -> NormBounds | None:
    """The bounds at `ratio` times the median norm of each model; None if there is no token.

    `pieces` are activations `[token, both]` and the tokens' positions `[token]`.
    """
    norms = [
        torch.cat([part.norm(dim=-1) for part in parts])
        for parts in zip(*(x.split(d_model, dim=-1) for x, _ in pieces), strict=True)
    ]
    if not norms or len(norms[0]) == 0:
        return None
    device, position = norms[0].device, np.concatenate([each for _, each in pieces])
    at = {sink: np.flatnonzero(position == sink) for sink in range(SINK_POSITIONS)}
    at = {sink: where for sink, where in at.items() if len(where) >= MIN_TEXTS}
    groups = [sent(torch.from_numpy(where), device) for where in at.values()]
    medians = [norm.median() for norm in norms] + [norm[group].median() for group in groups for norm in norms]
    both, *by_sink = torch.stack(medians).view(-1, 2).tolist()  # the one wait for the device
    limits = (ratio * both[0], ratio * both[1])
    sinks = [sink for sink, (base, chat) in zip(at, by_sink, strict=True) if base > limits[0] or chat > limits[1]]
    return NormBounds(limits, tuple(sinks))


def joined(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The state of one filter for the filters, in these states, of several parts of the texts.

    Counts are added up. Each limit is the mean of the parts'; a position is left out if at least half of them found it.
    """
    bounds = [state for state in states if state["limits"] is not None]
    limits = [sum(each) / len(bounds) for each in zip(*(state["limits"] for state in bounds), strict=True)]
    found = Counter(position for state in bounds for position in state["positions"])
    return {
        "limits": limits or None,
        "positions": sorted(position for position, number in found.items() if 2 * number >= len(bounds)),
        "num_tokens": sum(state["num_tokens"] for state in states),
        "left_out": np.sum([state["left_out"] for state in states], axis=0).tolist(),
    }


class NormFilter:
    """Leaves out tokens with an outlying norm and counts them. Measures its bounds on the first window that it sees."""

    def __init__(self, ratio: float | None, d_model: tuple[int, int], bounds: NormBounds | None = None) -> None:
        """`ratio` None keeps every token; `bounds` are those of an earlier filter."""
        self.ratio = ratio
        self._d_model = d_model
        self.bounds = bounds
        self.num_tokens = 0
        """Tokens that it has judged."""
        self.left_out = np.zeros(SINK_POSITIONS + 1, dtype=np.int64)
        """Tokens that it has left out, by position; the last entry counts all further positions."""

    def measure(self, window: Sequence[tuple[Tensor, np.ndarray]]) -> None:
        """Takes its bounds from a window's tokens (activations `[token, both]` and positions) if it has none yet."""
        if self.ratio is not None and self.bounds is None:
            self.bounds = measured_bounds(window, self._d_model, self.ratio)

    def __call__(self, window: Sequence[tuple[Tensor, np.ndarray]]) -> list[np.ndarray]:
        """Which tokens of each piece of a window stay, each [token] bool; counts those that do not.

        A piece is activations `[token, both]` and the tokens' positions `[token]`. Waits for the device once.
        """
        sizes = [len(position) for _, position in window]
        self.num_tokens += sum(sizes)
        if self.ratio is None or self.bounds is None or not window:
            return [np.ones(size, dtype=bool) for size in sizes]
        found = [
            self.bounds.outlying(x, sent(torch.from_numpy(position), x.device), self._d_model) for x, position in window
        ]
        outlying = torch.cat(found).cpu().numpy()
        positions = np.concatenate([position for _, position in window])[outlying]
        self.left_out += np.bincount(np.minimum(positions, SINK_POSITIONS), minlength=SINK_POSITIONS + 1)
        return np.split(~outlying, np.cumsum(sizes)[:-1])

    def merge(self, other: "NormFilter") -> None:
        """Adds the counts of a filter of other tokens, with the same bounds; takes these if it has none yet."""
        self.bounds = self.bounds or other.bounds
        self.num_tokens += other.num_tokens
        self.left_out = self.left_out + other.left_out

    @property
    def num_left_out(self) -> int:
        """Tokens that it has left out."""
        return int(self.left_out.sum())

    def state(self) -> dict[str, Any]:
        """Bounds and counts as plain JSON values."""
        limits, positions = (None, []) if self.bounds is None else (self.bounds.limits, self.bounds.positions)
        return {
            "limits": None if limits is None else list(limits),
            "positions": list(positions),
            "num_tokens": self.num_tokens,
            "left_out": self.left_out.tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        limits = state["limits"]
        self.bounds = None if limits is None else NormBounds((limits[0], limits[1]), tuple(state["positions"]))
        self.num_tokens = state["num_tokens"]
        self.left_out = np.array(state["left_out"], dtype=np.int64)

    def sentence(self) -> str:
        """What was left out and why; empty where nothing was."""
        if not self.num_left_out or self.bounds is None:
            return ""
        share = f"{100 * self.num_left_out / self.num_tokens:.2g} %"
        limits = ", ".join(
            f"{limit:.4g} in the {name} model" for name, limit in zip(MODEL_NAMES, self.bounds.limits, strict=True)
        )
        return (
            f"{share} of the tokens ({self.num_left_out} of {self.num_tokens}) were left out: norm above "
            f"{self.ratio:g} × the median ({limits}); {self._by_position()}."
        )

    def _by_position(self) -> str:
        early = np.flatnonzero(self.left_out[:-1])
        if len(early) == 1 and self.left_out[early[0]] == self.num_left_out:
            return f"all at position {early[0]}"
        most = early[np.argsort(-self.left_out[early], kind="stable")][:3]
        named = [f"{self.left_out[position]} at position {position}" for position in most]
        rest = self.num_left_out - int(self.left_out[most].sum())
        return ", ".join([*named, *([f"{rest} elsewhere"] if rest else [])])

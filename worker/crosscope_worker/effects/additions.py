"""What generated tokens get added where no change depends on a stream: worked out once, used step after step.

Knows rows by their place alone; does not know how the models run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crosscope_worker.effects.interventions import Site, Steering


@dataclass(frozen=True, eq=False)
class Added:
    """What the next token of every row gets added; the norm of its activation decides between two cases."""

    usual: Tensor
    """[row, d_model] float32, where the norm is no outlier."""
    outlying: Tensor
    """The same where it is."""
    counts: Tensor
    """[case, row, 2] int64, the usual case first: 1 where a token is changed, and where it is left alone."""

    def delta(self, is_outlying: Tensor | None) -> Tensor:
        """What is added, [row, d_model]. is_outlying: [row] bool; None: no row is."""
        return self.usual if is_outlying is None else torch.where(is_outlying[:, None], self.outlying, self.usual)

    def counted(self, is_outlying: Tensor | None) -> Tensor:
        """Tokens that are changed and tokens that are left alone, [row, 2] int64."""
        usual, outlying = self.counts
        return usual if is_outlying is None else torch.where(is_outlying[:, None], outlying, usual)


class Additions:
    """The additions to the rows whose changes depend on no stream; nothing is added to others.

    `Steering.change` works them out. What it gave stays true while every row has the same role, the token policy judges
    it alike, and its position is none that an intervention names.
    """

    def __init__(self, steered: Sequence[tuple[Steering, Tensor]], num_rows: int) -> None:
        """`steered`: what changes some rows, and their places among all `num_rows` of them, [any] int64, on the device.

        No steering `needs_code`.
        """
        self._steered = steered
        self._named = frozenset[int]().union(*(steering.positions for steering, _ in steered))
        self._num_rows = num_rows
        self._known: tuple[object, Added] | None = None

    def at(self, positions: np.ndarray, roles: np.ndarray, left_out: np.ndarray) -> Added:
        """What the next tokens get; [row] each: places in the text, TokenRole, and bool, left out by the policy."""
        named = [place if place in self._named else None for place in positions.tolist()] if self._named else None
        key = named, roles.tolist(), left_out.tolist()
        if self._known is None or self._known[0] != key:
            self._known = key, self._added(positions, roles, left_out)
        return self._known[1]

    def _added(self, positions: np.ndarray, roles: np.ndarray, left_out: np.ndarray) -> Added:
        device = self._steered[0][1].device
        given = [torch.from_numpy(each).to(device) for each in (positions, roles, left_out)]
        deltas = torch.zeros(2, self._num_rows, self._steered[0][0].d_model, device=device)
        counts = torch.zeros(2, self._num_rows, 2, dtype=torch.int64, device=device)
        for steering, places in self._steered:
            position, role, by_policy = (each[places] for each in given)
            for case in (0, 1):
                site = Site(position, role, torch.ones_like(by_policy), by_policy | bool(case))
                change = steering.change(None, site)
                deltas[case, places] = change.delta
                counts[case, places] = torch.stack([change.changed, change.spared], dim=1).long()
        return Added(deltas[0], deltas[1], counts)

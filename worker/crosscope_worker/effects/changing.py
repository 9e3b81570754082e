"""Changes of the rows of one model at one layer, made in a forward by a hook.

Knows rows by their place alone; does not know how the models run, or who asked for what.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crosscope_proto.roles import BASE
from crosscope_worker.dictionary.sparse import SparseCode
from crosscope_worker.effects.additions import Additions
from crosscope_worker.effects.interventions import Codes, Site, Steering
from crosscope_worker.effects.subject import Reading
from crosscope_worker.models.residual import stream


@dataclass(frozen=True, eq=False)
class Chunk:
    """The next tokens of every row of a lane; all [row, column]."""

    ids: np.ndarray
    """int64."""
    positions: np.ndarray
    """int64, in the text; -1 for padding."""
    roles: np.ndarray
    """uint8, TokenRole."""
    left_out: np.ndarray
    """bool: the token policy leaves the token out."""
    is_generated: bool


@dataclass(frozen=True, eq=False)
class Group:
    """Rows with the same changes."""

    steering: Steering
    places: Tensor
    """[row] int64, among all rows."""
    lower_places: Tensor
    """[row] int64, among the rows that the other model reads too; -1 for others."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is changed at which rows of a model."""

    model: int
    num_rows: int
    groups: list[Group]
    """The rows with changes, equal ones together."""
    lower_places: Tensor
    """[lower row] int64: where the rows that the other model reads too stand among all rows."""
    coded: Tensor
    """[any] int64, among the rows that the other model reads too: those of which the code is asked."""

    @functools.cached_property
    def additions(self) -> Additions | None:
        """The changes that depend on no stream; None: there are none."""
        steered = [(group.steering, group.places) for group in self.groups if not group.steering.needs_code]
        return Additions(steered, self.num_rows) if steered else None


class Changing:
    """A hook on the layer: works out codes and changes from the unchanged streams, and makes the changes."""

    def __init__(self, reading: Reading, plan: Plan, chunk: Chunk, positions: Tensor, other: Tensor | None) -> None:
        """`positions` are the chunk's on the device; other: [lower row, column, d_model], the other model's stream."""
        self._reading = reading
        self._plan = plan
        self._chunk = chunk
        self._positions = positions
        self._other = other
        self._added = None
        self._groups = plan.groups
        """Those that the hook works out: all but what is known before."""
        if chunk.is_generated and plan.additions is not None:
            self._added = plan.additions.at(chunk.positions[:, 0], chunk.roles[:, 0], chunk.left_out[:, 0])
            self._groups = [group for group in plan.groups if group.steering.needs_code]
        self._counts: Tensor | None = None
        self.outlying: np.ndarray | None = None
        self.code: SparseCode | None = None
        judges_prompt = not chunk.is_generated and reading.bounds is not None
        self.is_wanted = bool(self._groups or self._added or judges_prompt) or other is not None

    def counts(self) -> np.ndarray | None:
        """See Outcome."""
        return None if self._counts is None else self._counts.cpu().numpy()

    def __call__(self, _module: nn.Module, _inputs: object, output: Any) -> Any:
        """The layer's output with the changes, on its device; None: as it is."""
        x = stream(output).to(self._positions.device)
        own = x.flatten(0, 1).float()
        both = None
        if self._other is not None:
            both = _both(self._plan.model, x[self._plan.lower_places].float(), self._other.float())
        outlying = self._outlying(own, both)
        if outlying is not None and (not self._chunk.is_generated or len(self._plan.coded)):
            self.outlying = outlying.view(x.shape[:2]).cpu().numpy()
        delta = self._delta(own, both, outlying)
        if delta is None:
            return None
        changed = (own + delta).view(x.shape).to(stream(output))
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    def _outlying(self, own: Tensor, both: Tensor | None) -> Tensor | None:
        """[token] bool: tokens with an outlying norm; None: no norm is one."""
        if self._reading.bounds is None:
            return None
        positions = self._positions.flatten()
        outlying = self._reading.outlying_in(self._plan.model, own, positions)
        if both is not None:
            at = _tokens(self._plan.lower_places, self._positions.shape[1])
            outlying[at] = self._reading.outlying(both, positions[at], self._reading.crosscoder.d_model)
        return outlying

    def _delta(self, own: Tensor, both: Tensor | None, outlying: Tensor | None) -> Tensor | None:
        """What is added to the stream, [token, d_model]; None: nothing."""
        codes = self._codes(both)
        parts: list[tuple[Tensor, Tensor]] = []  # a row is in one of them
        if self._groups:
            parts.append(self._worked_out(own, both, codes, outlying))
        if self._added is not None:
            parts.append((self._added.delta(outlying), self._added.counted(outlying)))
        if not parts:
            return None
        deltas, counts = zip(*parts, strict=True)
        self._counts = functools.reduce(torch.add, counts)
        return functools.reduce(torch.add, deltas)

    def _worked_out(
        self, own: Tensor, both: Tensor | None, codes: Codes | None, outlying: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What the groups add, [token, d_model], and tokens changed and left alone, [row, 2] int64."""
        chunk, (num_rows, num_columns) = self._chunk, self._positions.shape
        given = [torch.from_numpy(each).to(own.device).flatten() for each in (chunk.roles, chunk.left_out)]
        positions, roles = self._positions.flatten(), given[0]
        left_out = given[1] if outlying is None else given[1] | outlying
        is_generated = torch.full_like(left_out, chunk.is_generated)
        delta, counts = torch.zeros_like(own), torch.zeros(len(own), 2, dtype=torch.int64, device=own.device)
        for group in self._groups:
            at, among = _tokens(group.places, num_columns), _tokens(group.lower_places, num_columns)
            if not chunk.is_generated:  # there may be padding
                inside = positions[at] >= 0
                at, among = at[inside], among[inside]
            site = Site(positions[at], roles[at], is_generated[at], left_out[at])
            if group.steering.needs_code:
                assert both is not None
                change = group.steering.change(both[among], site, None if codes is None else codes.select(among))
            else:
                change = group.steering.change(None, site)
            delta[at] = change.delta
            counts[at] = torch.stack([change.changed, change.spared], dim=1).long()
        return delta, counts.view(num_rows, num_columns, 2).sum(dim=1)

    def _codes(self, both: Tensor | None) -> Codes | None:
        """The code of the rows that the other model reads too, where all of it is needed; notes what was asked for."""
        wanted = self._plan.coded
        if not len(wanted) and not any(group.steering.needs_whole_code for group in self._groups):
            return None
        assert both is not None
        with self._reading.products():
            codes = Codes(self._reading.crosscoder, self._reading.sparsifier, both)
        if len(wanted):
            num_columns = self._positions.shape[1]
            sparse = codes.select(_tokens(wanted, num_columns)).sparse()
            place = _tokens(self._plan.lower_places[wanted], num_columns)
            self.code = sparse._replace(tokens=place[sparse.tokens], num_tokens=self._positions.numel())
        return codes


def _both(model: int, own: Tensor, other: Tensor) -> Tensor:
    """Both streams side by side, [token, both], base first."""
    parts = (own, other) if model == BASE else (other, own)
    return torch.cat([part.flatten(0, 1) for part in parts], dim=1)


def _tokens(places: Tensor, num_columns: int) -> Tensor:
    """Indices of the tokens of some rows, all columns of a row after each other."""
    if num_columns == 1:
        return places
    return (places[:, None] * num_columns + torch.arange(num_columns, device=places.device)).flatten()

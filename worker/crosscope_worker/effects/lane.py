"""Rows that one model reads together, each with changes of its own at one layer.

Where a row's changes or code need the other model's stream, the other model reads the row too, up to that layer.
Knows no orders, arms or texts.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from crosscope_proto.roles import BASE
from crosscope_worker.dictionary.sparse import SparseCode
from crosscope_worker.effects.interventions import Codes, Site, Steering
from crosscope_worker.effects.row_cache import RowCache
from crosscope_worker.effects.subject import Reading, Subject
from crosscope_worker.models.pair import decoder_layers
from crosscope_worker.models.residual import LowerHalf, stream

_MIN_TRIMMED = 32
"""Columns of padding in front of every row from which they are worth forgetting."""


@dataclass(eq=False)
class Row:
    """A row of a lane."""

    steering: Steering | None
    with_code: bool
    length: int
    """Tokens that were read."""

    @property
    def needs_other(self) -> bool:
        """Whether the other model reads it too."""
        return self.with_code or (self.steering is not None and self.steering.needs_code)


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
class Outcome:
    """What reading a chunk gave."""

    logits: Tensor
    """[row, vocabulary] float32, behind each row's last token."""
    counts: np.ndarray | None
    """[row, 2] int64: tokens of the chunk that were changed, and tokens that were left alone; None: none."""
    outlying: np.ndarray | None
    """[row, column] bool: tokens with an outlying norm. None without a reading, and of generated tokens where no row is
    `with_code`."""
    code: SparseCode | None
    """Of the tokens of rows `with_code`, raw; `tokens` count through the chunk, row by row."""


@dataclass(frozen=True, eq=False)
class Group:
    """Rows with the same changes."""

    steering: Steering
    places: Tensor
    """[row] int64, among all rows."""
    lower_places: Tensor
    """[row] int64, among the rows that the other model reads too; -1 for others."""


R = TypeVar("R", bound=Row)


class Lane(Generic[R]):
    """Rows of one model. Not thread-safe."""

    def __init__(self, subject: Subject, model: int) -> None:
        self._reading = subject.reading
        self._models = subject.pair.models
        self._device = subject.pair.device
        self.model = model
        self.rows: list[R] = []
        self._lower_rows: list[R] = []
        """The rows that the other model reads too, in the order of its cache."""
        self.whole, self.lower = RowCache(), RowCache()
        self._takes = set(inspect.signature(self._models[model].forward).parameters)
        if self._reading is not None:
            layer = self._reading.layer
            self._layer = decoder_layers(self._models[model])[layer]
            self._lower_half = LowerHalf(self._models[1 - model], layer)
        self._groups: list[Group] | None = None

    def append(self, other: "Lane[Any]", rows: Sequence[R], sources: Sequence[Row]) -> None:
        """Adds rows with what other rows of another lane have read. Changes nothing if memory runs out."""
        places = {id(row): place for place, row in enumerate(other.rows)}
        lower_places = {id(row): place for place, row in enumerate(other._lower_rows)}
        num_rows = self.whole.num_rows
        self.whole.append(other.whole, [places[id(source)] for source in sources])
        also = [(row, source) for row, source in zip(rows, sources, strict=True) if row.needs_other]
        if also:
            try:
                self.lower.append(other.lower, [lower_places[id(source)] for _, source in also])
            except BaseException:
                self.whole.truncate(num_rows)
                raise
        self.rows += rows
        self._lower_rows += [row for row, _ in also]
        self._groups = None

    def add_empty(self, rows: Sequence[R]) -> None:
        """Starts with rows that have read nothing."""
        assert not self.rows
        self.rows = list(rows)
        self._lower_rows = [row for row in rows if row.needs_other]

    def remove(self, row: R) -> None:
        """Forgets a row; the last one takes its place."""
        self._groups = None
        for rows, cache in ((self.rows, self.whole), (self._lower_rows, self.lower)):
            place = next((place for place, each in enumerate(rows) if each is row), None)
            if place is not None:
                if cache.num_rows:
                    cache.remove(place)
                rows[place] = rows[-1]
                rows.pop()

    def trim(self) -> None:
        """Forgets padding that stands in front of every row, where it is much."""
        for rows, cache in ((self.rows, self.whole), (self._lower_rows, self.lower)):
            if rows and (spare := cache.length - max(row.length for row in rows)) > max(
                _MIN_TRIMMED, cache.length // 4
            ):
                cache.trim(spare)

    @torch.inference_mode()
    def read(self, chunk: Chunk) -> Outcome:
        """Lets every row read its part of a chunk. Follow it with `commit` or `roll_back`."""
        ids, positions = self._tensor(chunk.ids), self._tensor(chunk.positions)
        other = self._read_lower(ids, positions) if self._lower_rows else None
        changing = _Changing(self._reading, self, chunk, positions, other)
        model = self._models[self.model]
        hook = None
        if self._reading is not None and changing.is_wanted:
            hook = self._layer.register_forward_hook(changing)
        try:
            given = self._inputs(ids, positions, self.whole, self.rows)
            if "logits_to_keep" in self._takes:
                given["logits_to_keep"] = 1
            logits = model(**given).logits[:, -1].float()
        finally:
            if hook is not None:
                hook.remove()
        return Outcome(logits, changing.counts(), changing.outlying, changing.code)

    def commit(self, chunk: Chunk) -> None:
        """Keeps what was read."""
        self.whole.commit()
        if self._lower_rows:
            self.lower.commit()
        for row, number in zip(self.rows, (chunk.positions >= 0).sum(axis=1).tolist(), strict=True):
            row.length += number

    def roll_back(self) -> None:
        """Forgets what was read."""
        self.whole.roll_back()
        self.lower.roll_back()

    def groups(self) -> "list[Group]":
        """The rows with changes, equal ones together."""
        if self._groups is None:
            lower = {id(row): place for place, row in enumerate(self._lower_rows)}
            found: dict[int, tuple[Steering, list[int], list[int]]] = {}
            for place, row in enumerate(self.rows):
                if row.steering is not None:
                    _, places, lower_places = found.setdefault(id(row.steering), (row.steering, [], []))
                    places.append(place)
                    lower_places.append(lower.get(id(row), -1))
            self._groups = [
                Group(
                    steering, torch.tensor(places, device=self._device), torch.tensor(lower_places, device=self._device)
                )
                for steering, places, lower_places in found.values()
            ]
        return self._groups

    def lower_places(self) -> list[int]:
        """Where each row of the other model stands among all rows."""
        places = {id(row): place for place, row in enumerate(self.rows)}
        return [places[id(row)] for row in self._lower_rows]

    def _read_lower(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The other model's stream, [lower row, column, d_model]."""
        at = torch.tensor(self.lower_places(), device=self._device)
        return self._lower_half(**self._inputs(ids[at], positions[at], self.lower, self._lower_rows))

    def _inputs(self, ids: Tensor, positions: Tensor, cache: RowCache, rows: Sequence[Row]) -> dict[str, Any]:
        # A row of a prompt has its padding in the chunks themselves, so its tokens say where they begin.
        width = cache.length + ids.shape[1]
        lengths = torch.tensor([row.length for row in rows], device=self._device)
        lengths += (positions >= 0).sum(dim=1)
        mask = torch.arange(width, device=self._device) >= (width - lengths)[:, None]
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), "past_key_values": cache}
        if "position_ids" in self._takes:
            given["position_ids"] = positions.clamp_min(0)
        return given | {"use_cache": True}

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)


class _Changing:
    """A hook on the layer: works out codes and changes from the unchanged streams, and makes the changes."""

    def __init__(
        self, reading: Reading | None, lane: "Lane[Any]", chunk: Chunk, positions: Tensor, other: Tensor | None
    ) -> None:
        self._reading = reading
        self._rows: Sequence[Row] = lane.rows
        self._model = lane.model
        self._chunk = chunk
        self._positions = positions
        self._other = other
        self._groups = lane.groups()
        self._lower_places = lane.lower_places() if other is not None else []
        self._counts: Tensor | None = None
        self.outlying: np.ndarray | None = None
        self.code: SparseCode | None = None
        self.is_wanted = bool(self._groups) or other is not None or not chunk.is_generated

    def counts(self) -> np.ndarray | None:
        """See Outcome."""
        return None if self._counts is None else self._counts.cpu().numpy()

    def __call__(self, _module: nn.Module, _inputs: object, output: Any) -> Any:
        assert self._reading is not None
        x = stream(output)
        shape = x.shape[:2]
        own = x.flatten(0, 1).float()
        positions = self._positions.flatten()
        outlying = self._reading.outlying_in(self._model, own, positions)
        both = None
        if self._other is not None:
            both = _both(self._model, x[self._lower_places].float(), self._other.float())
            at = _tokens(torch.tensor(self._lower_places, device=x.device), shape[1])
            widths = (self._reading.crosscoder.d_model[0], self._reading.crosscoder.d_model[1])
            outlying[at] = self._reading.outlying(both, positions[at], widths)
        if not self._chunk.is_generated or any(row.with_code for row in self._rows):
            self.outlying = outlying.view(shape).cpu().numpy()
        left_out = outlying | torch.from_numpy(self._chunk.left_out).to(x.device).flatten()
        delta = self._delta(own, both, positions, left_out)
        if delta is None:
            return None
        changed = (own + delta).to(x.dtype).view(x.shape)
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    def _delta(self, own: Tensor, both: Tensor | None, positions: Tensor, left_out: Tensor) -> Tensor | None:
        """What is added to the stream, [token, d_model]; None: nothing."""
        assert self._reading is not None
        num_columns = self._positions.shape[1]
        codes = None
        if both is not None:
            codes = Codes(self._reading.crosscoder, self._reading.sparsifier, both)
            self._note_code(codes, num_columns)
        if not self._groups:
            return None
        roles = torch.from_numpy(self._chunk.roles).to(own.device).flatten()
        delta, counts = torch.zeros_like(own), torch.zeros(len(own), 2, dtype=torch.int64, device=own.device)
        is_generated = torch.full_like(left_out, self._chunk.is_generated)
        for group in self._groups:
            at, among = _tokens(group.places, num_columns), _tokens(group.lower_places, num_columns)
            if not self._chunk.is_generated:  # there may be padding
                inside = positions[at] >= 0
                at, among = at[inside], among[inside]
            site = Site(positions[at], roles[at], is_generated[at], left_out[at])
            if group.steering.needs_code:
                assert both is not None
                assert codes is not None
                change = group.steering.change(both[among], site, codes.select(among))
            else:
                change = group.steering.change(None, site)
            delta[at] = change.delta
            counts[at] = torch.stack([change.changed, change.spared], dim=1).long()
        self._counts = counts.view(-1, num_columns, 2).sum(dim=1)
        return delta

    def _note_code(self, codes: Codes, num_columns: int) -> None:
        """Keeps the code of the rows that ask for it."""
        wanted = [index for index, place in enumerate(self._lower_places) if self._rows[place].with_code]
        if not wanted:
            return
        assert self._other is not None
        device = self._other.device
        sparse = codes.select(_tokens(torch.tensor(wanted, device=device), num_columns)).sparse()
        places = torch.tensor([self._lower_places[index] for index in wanted], device=device)
        place = _tokens(places, num_columns)
        self.code = sparse._replace(tokens=place[sparse.tokens], num_tokens=len(self._rows) * num_columns)


def _both(model: int, own: Tensor, other: Tensor) -> Tensor:
    """Both streams side by side, [token, both], base first."""
    parts = (own, other) if model == BASE else (other, own)
    return torch.cat([part.flatten(0, 1) for part in parts], dim=1)


def _tokens(places: Tensor, num_columns: int) -> Tensor:
    """Indices of the tokens of some rows, all columns of a row after each other."""
    if num_columns == 1:
        return places
    return (places[:, None] * num_columns + torch.arange(num_columns, device=places.device)).flatten()

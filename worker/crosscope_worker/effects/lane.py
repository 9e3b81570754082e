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
from torch import Tensor

from crosscope_worker.dictionary.sparse import SparseCode
from crosscope_worker.effects.changing import Changing, Chunk, Group, Plan
from crosscope_worker.effects.interventions import Steering
from crosscope_worker.effects.row_cache import RowCache
from crosscope_worker.effects.subject import Subject
from crosscope_worker.models.pair import decoder_layers
from crosscope_worker.models.residual import LowerHalf

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
class Outcome:
    """What reading a chunk gave."""

    logits: Tensor
    """[row, vocabulary] float32, behind each row's last token; on the model's own device."""
    counts: np.ndarray | None
    """[row, 2] int64: tokens of the chunk that were changed, and tokens that were left alone; None: none."""
    outlying: np.ndarray | None
    """[row, column] bool: tokens with an outlying norm. None where there are no bounds of norms, and of generated
    tokens where no code is asked for."""
    code: SparseCode | None
    """Of the tokens of rows `with_code`, raw; `tokens` count through the chunk, row by row."""


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
        self._plan: Plan | None = None

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
        self._plan = None

    def add_empty(self, rows: Sequence[R]) -> None:
        """Starts with rows that have read nothing."""
        assert not self.rows
        self.rows = list(rows)
        self._lower_rows = [row for row in rows if row.needs_other]

    def remove(self, row: R) -> None:
        """Forgets a row; the last one takes its place."""
        self._plan = None
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
        changing = hook = None
        if self._reading is not None:
            changing = Changing(self._reading, self._planned(), chunk, positions, other)
            if changing.is_wanted:
                hook = self._layer.register_forward_hook(changing)
        try:
            given = self._inputs(ids, positions, self.whole, self.rows)
            if "logits_to_keep" in self._takes:
                given["logits_to_keep"] = 1
            logits = self._models[self.model](**given).logits[:, -1].float()
        finally:
            if hook is not None:
                hook.remove()
        if changing is None:
            return Outcome(logits, None, None, None)
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

    def _planned(self) -> Plan:
        """What is changed at which rows, until rows come or go."""
        if self._plan is None:
            places = {id(row): place for place, row in enumerate(self.rows)}
            lower = {id(row): place for place, row in enumerate(self._lower_rows)}
            found: dict[int, tuple[Steering, list[int], list[int]]] = {}
            for place, row in enumerate(self.rows):
                if row.steering is not None:
                    _, own, among = found.setdefault(id(row.steering), (row.steering, [], []))
                    own.append(place)
                    among.append(lower.get(id(row), -1))
            self._plan = Plan(
                self.model,
                len(self.rows),
                [Group(steering, self._index(own), self._index(among)) for steering, own, among in found.values()],
                self._index([places[id(row)] for row in self._lower_rows]),
                self._index([place for place, row in enumerate(self._lower_rows) if row.with_code]),
            )
        return self._plan

    def _index(self, places: list[int]) -> Tensor:
        return torch.tensor(places, dtype=torch.int64, device=self._device)

    def _read_lower(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The other model's stream, [lower row, column, d_model]."""
        at = self._planned().lower_places
        return self._lower_half(**self._inputs(ids[at], positions[at], self.lower, self._lower_rows)).to(self._device)

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

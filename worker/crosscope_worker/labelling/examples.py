"""The texts of a latent: what an explainer is shown, and what its label is scored on. Knows no model.

Every text is a window of tokens about a peak. The texts on which a label is scored are never those that were shown, nor
windows with the same words.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crosscope_proto.artefacts import EXAMPLES, LATENTS, SEQUENCES, CrosscoderManifest, ExampleGroup, example_part
from crosscope_proto.label_specs import LabelExamples
from crosscope_worker.disk import sha256
from crosscope_worker.labelling.errors import LabelError

MARK_SHARE = 0.3
"""A token is marked if its activation is at least this share of the text's largest."""
MARKS = ("<<", ">>")


@dataclass(frozen=True)
class Window:
    """Some tokens of a text."""

    pieces: tuple[str, ...]
    marked: frozenset[int] = frozenset()
    """Indices of the marked tokens."""
    fires: frozenset[int] = frozenset()
    """Indices of all tokens on which the latent fires."""
    strength: float = 0.0
    """Largest activation of the text, as a share of the latent's own."""

    @property
    def plain(self) -> str:
        """Its text."""
        return "".join(self.pieces)

    @property
    def shown(self) -> str:
        """Its text with marks about the marked tokens. Marks that the text itself has are spread: < <."""
        parts: list[str] = []
        groups = itertools.groupby(range(len(self.pieces)), key=lambda index: index in self.marked)
        for is_marked, indices in groups:
            text = _spread("".join(self.pieces[index] for index in indices))
            parts.append(f"{MARKS[0]}{text}{MARKS[1]}" if is_marked else text)
        return "".join(parts)

    def with_marks(self, marked: Iterable[int]) -> "Window":
        """The same tokens, others marked."""
        return Window(self.pieces, frozenset(marked), self.fires, self.strength)


def _spread(text: str) -> str:
    return text.replace("<<", "< <").replace(">>", "> >")


@dataclass(frozen=True)
class Texts:
    """The texts of one latent."""

    shown: tuple[Window, ...]
    """What the explainer sees, strongest first."""
    firing: tuple[Window, ...]
    """Held-out texts on which it fires, rightly marked."""
    silent: tuple[Window, ...]
    """Texts on which it stays silent."""
    marks: tuple[tuple[Window, bool], ...]
    """Held-out texts on which it fires, in turn rightly and wrongly marked, and whether rightly."""


class ExampleFile:
    """The tables of a version, examples a latent at a time."""

    def __init__(self, folder: Path, manifest: CrosscoderManifest) -> None:
        """Reads the texts. Raises LabelError for files that are missing or damaged."""
        self._folder, self._manifest = folder, manifest
        self._checked: set[str] = set()
        self._pieces = self._read(SEQUENCES, ["pieces"]).column("pieces").combine_chunks()
        self.latents = self._read(LATENTS)
        """LATENT_COLUMNS."""

    def texts(self, latent: int, largest: float, spec: LabelExamples) -> Texts:
        """The texts of a latent whose largest activation is `largest`. Equal arguments give equal texts."""
        rng = np.random.default_rng([spec.seed, latent])
        groups = self._windows(latent, largest, spec.context)
        firing = _in_turn(_mixed(groups[ExampleGroup.TOP], rng), _mixed(groups[ExampleGroup.QUANTILE], rng))
        num_shown = min(spec.shown, (len(firing) + 1) // 2)
        shown = sorted(firing[:num_shown], key=lambda window: -window.strength)
        held_out = firing[num_shown : num_shown + spec.held_out]
        words = {window.plain for window in firing}
        silent = [window for window in _mixed(groups[ExampleGroup.SILENT], rng) if window.plain not in words]
        marks = tuple(_marks(_mixed(held_out, rng), rng))
        return Texts(tuple(shown), tuple(held_out), tuple(silent[: spec.held_out]), marks)

    def _windows(self, latent: int, largest: float, context: int) -> dict[ExampleGroup, list[Window]]:
        """The windows by group; each sequence once, and of equal windows the first."""
        found: dict[ExampleGroup, list[Window]] = {group: [] for group in ExampleGroup}
        seen: set[object] = set()
        order = [ExampleGroup.TOP, ExampleGroup.QUANTILE, ExampleGroup.SILENT]
        rows = [row for row in self._rows(latent) if row["group"] in order]
        for row in sorted(rows, key=lambda row: (order.index(row["group"]), row["dataset"], row["rank"])):
            window = self._window(row, largest, context)
            if row["sequence"] in seen or window.plain in seen:
                continue
            seen |= {row["sequence"], window.plain}
            found[ExampleGroup(row["group"])].append(window)
        return found

    def _window(self, row: dict[str, Any], largest: float, context: int) -> Window:
        positions, values = row["positions"], row["values"]
        if row["sequence"] >= len(self._pieces) or not positions or len(positions) != len(values):
            raise LabelError(f"{self._folder}: an example of latent {row['latent']} is damaged; publish it again")
        pieces = self._pieces[row["sequence"]].values
        peak = positions[max(range(len(values)), key=values.__getitem__)]
        start, end = max(0, peak - context), min(len(pieces), peak + context + 1)
        inside = [(at - start, value) for at, value in zip(positions, values, strict=True) if start <= at < end]
        if row["group"] == ExampleGroup.SILENT:
            inside = []
        limit = MARK_SHARE * max(values)
        return Window(
            tuple(pieces[start:end].to_pylist()),
            frozenset(at for at, value in inside if value >= limit),
            frozenset(at for at, _ in inside),
            row["max"] / largest if largest > 0 else 0.0,
        )

    def _rows(self, latent: int) -> list[dict[str, Any]]:
        name = f"{EXAMPLES}/{example_part(latent, self._manifest.num_latents)}"
        columns = ["latent", "dataset", "group", "rank", "sequence", "max", "positions", "values"]
        return self._read(name, columns, pc.field("latent") == latent).to_pylist()

    def _read(self, name: str, columns: list[str] | None = None, filters: pc.Expression | None = None) -> pa.Table:
        path = self._folder / name
        try:
            expected = self._manifest.hashes.get(name)
            if name not in self._checked and expected is not None and sha256(path) != expected:
                raise LabelError(f"{path} is damaged or was changed; restore the file, or publish the crosscoder again")
            self._checked.add(name)
            return pq.read_table(path, columns=columns, filters=filters, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            said = " ".join(str(error).split())[:200]
            raise LabelError(f"{path} cannot be read: {said}; publish the crosscoder again") from error


def _mixed(windows: Sequence[Window], rng: np.random.Generator) -> list[Window]:
    return [windows[index] for index in rng.permutation(len(windows))]


def _in_turn(first: Sequence[Window], second: Sequence[Window]) -> list[Window]:
    """The windows of both lists in turn, then what is left of the longer one."""
    both = itertools.zip_longest(first, second)
    return [window for pair in both for window in pair if window is not None]


def _marks(windows: Sequence[Window], rng: np.random.Generator) -> Iterator[tuple[Window, bool]]:
    """Windows in turn rightly and wrongly marked. Wrong marks are as many, on tokens on which the latent is silent.

    A window without such a token, or none that shows, is left out.
    """
    turn = True
    for window in windows:
        silent = [index for index, piece in enumerate(window.pieces) if index not in window.fires and piece.strip()]
        if not silent or not window.marked:
            continue
        if turn:
            yield window, True
        else:
            count = min(len(silent), len(window.marked))
            yield window.with_marks(rng.choice(silent, count, replace=False).tolist()), False
        turn = not turn

"""The plan of an analysis: the texts that it measures, cut, in a file, and the parts in which they are measured.

It is made before any model runs, so a part has the same texts and the same cut whoever measures it, and whatever was
measured before. The file has one Arrow record batch a window of texts; about 8 bytes a token.

These are parts of the texts, not the parts of a dictionary. Knows no models.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from crosscope_proto.job_disk import PART_TOKENS
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.analysis.cutting import Cut, Cutter
from crosscope_worker.analysis.quality import Limits
from crosscope_worker.data.texts import TaggedBehaviour, Text
from crosscope_worker.disk import sha256
from crosscope_worker.models.norms import NormBounds
from crosscope_worker.tokenizer.token_policy import policy_positions

_TEXTS, _PLAN = "texts.arrow", "plan.json"
_BEHAVIOUR = pa.struct([("name", pa.string()), ("decision", pa.int32()), ("start", pa.int32()), ("end", pa.int32())])
_SCHEMA = pa.schema(
    [
        ("dataset", pa.int32()),
        ("place", pa.string()),
        ("behaviours", pa.list_(_BEHAVIOUR)),
        ("block", pa.int64()),
        ("ids", pa.list_(pa.int32())),
        ("roles", pa.list_(pa.uint8())),
        ("shard", pa.list_(pa.int16())),
        ("repeats", pa.list_(pa.bool_())),
    ]
)


class PlanError(ValueError):
    """A plan that cannot be read; the sentence says why."""


@dataclass(frozen=True)
class Planned:
    """The sizes of one window."""

    num_texts: int
    num_tokens: int
    """Tokens that the analysis reads, outliers included."""


@dataclass(frozen=True)
class Reference:
    """What is an outlier; None for what the part finds out by itself, from its first window."""

    bounds: NormBounds | None = None
    """Of the norm filter."""
    limits: Limits | None = None
    """Of `Quality`."""


@dataclass(frozen=True)
class Plan:
    """The parts of an analysis."""

    key: str
    """What the measurements depend on besides the plan; results of another key are of no use."""
    windows: tuple[Planned, ...]
    parts: tuple[tuple[int, int], ...]
    """First window of each part, and one past its last."""
    counts: list[dict[str, Any]]
    """What became of the texts of each data set (`tally.as_state`)."""
    texts: str = ""
    """SHA-256 of the file of texts."""
    reference: Reference = Reference()
    """Told to every part, for only one begins with the first window."""

    def first_text(self, part: int) -> int:
        """Number of texts in the windows before a part."""
        return sum(window.num_texts for window in self.windows[: self.parts[part][0]])

    def first_token(self, part: int) -> int:
        """Number of tokens that the analysis reads of the windows before a part."""
        return sum(window.num_tokens for window in self.windows[: self.parts[part][0]])

    def read(self, folder: Path, part: int) -> Iterator[tuple[list[Text], Cut]]:
        """The windows of a part. Raises PlanError."""
        first, last = self.parts[part]
        try:
            with pa.memory_map(str(folder / _TEXTS)) as source, pa.ipc.open_file(source) as file:
                for window in range(first, last):
                    yield _window(file.get_batch(window))
        except (OSError, pa.ArrowException) as error:
            raise PlanError(f"the texts of the analysis in {folder} cannot be read: {error}") from error

    def save(self, folder: Path) -> None:
        """Writes the plan beside its texts."""
        (folder / _PLAN).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, whole: bool = True) -> Self:
        """Reads a plan; with `whole`, the file of texts is checked too. Raises PlanError."""
        try:
            found = json.loads((folder / _PLAN).read_text(encoding="utf-8"))
            windows = tuple(Planned(**each) for each in found.pop("windows"))
            parts = tuple((int(first), int(last)) for first, last in found.pop("parts"))
            reference = _reference(found.pop("reference"))
            plan = cls(windows=windows, parts=parts, reference=reference, **found)
            damaged = whole and sha256(folder / _TEXTS) != plan.texts
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise PlanError(f"the plan of the analysis in {folder} cannot be read: {error}") from error
        if damaged:
            raise PlanError(f"{folder / _TEXTS} is not what was written")
        return plan


def write_texts(folder: Path, windows: Iterable[list[Text]], policy: TokenPolicy, cutter: Cutter) -> Iterator[Planned]:
    """Cuts windows of texts and writes them, until the cutter is full; gives the sizes of each. Raises OSError."""
    with (folder / _TEXTS).open("wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as file:
        for texts in windows:
            positions = [policy_positions(text.roles, policy) for text in texts]
            text = np.repeat(np.arange(len(texts)), [len(each) for each in positions])
            cut = cutter.cut(texts, text, np.concatenate(positions))
            file.write_batch(_batch(texts, cut))
            yield Planned(len(texts), cut.num_tokens)
            if cutter.is_full:
                return


def plan_of(
    folder: Path, key: str, windows: list[Planned], num_parts: int | None, counts: list[dict[str, Any]]
) -> Plan:
    """The plan of written windows: parts of whole windows, whose numbers of windows differ by one at most.

    `num_parts` None: one for every PART_TOKENS tokens. There are never more parts than windows.
    """
    num_tokens = sum(window.num_tokens for window in windows)
    wanted = num_parts or max(1, -(-num_tokens // PART_TOKENS))
    edges = np.linspace(0, len(windows), max(1, min(wanted, len(windows))) + 1).astype(int).tolist()
    parts = tuple(itertools.pairwise(edges))
    return Plan(key, tuple(windows), parts, counts, sha256(folder / _TEXTS))


def _batch(texts: list[Text], cut: Cut) -> pa.RecordBatch:
    offsets = pa.array(np.cumsum([0, *(len(text.ids) for text in texts)]).astype(np.int32))

    def lists(values: np.ndarray) -> Any:
        return pa.ListArray.from_arrays(offsets, pa.array(values))  # type: ignore[arg-type] - of int32

    behaviours = [[asdict(each) for each in text.behaviours] for text in texts]
    columns: list[Any] = [
        pa.array([text.dataset for text in texts], pa.int32()),
        pa.array([text.place for text in texts], pa.string()),
        pa.array(behaviours, pa.list_(_BEHAVIOUR)),
        pa.array(cut.block),
        lists(np.concatenate([text.ids for text in texts]).astype(np.int32)),
        lists(np.concatenate([text.roles for text in texts]).astype(np.uint8)),
        lists(cut.shard),
        lists(cut.repeats),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


def _window(batch: pa.RecordBatch) -> tuple[list[Text], Cut]:
    def values(name: str) -> np.ndarray:
        column: Any = batch.column(name)
        return column.values.to_numpy(zero_copy_only=False)

    ids, roles = values("ids").astype(np.int64), values("roles").copy()
    lists: Any = batch.column("ids")
    ends = lists.offsets.to_numpy()[1:-1]
    columns = (batch.column(name).to_pylist() for name in ("dataset", "place", "behaviours"))
    texts = [
        Text(dataset, own_ids, own_roles, tuple(TaggedBehaviour(**each) for each in behaviours), place)
        for own_ids, own_roles, dataset, place, behaviours in zip(
            np.split(ids, ends), np.split(roles, ends), *columns, strict=True
        )
    ]
    return texts, Cut(batch.column("block").to_numpy().copy(), values("shard").copy(), values("repeats").copy())


def _reference(found: dict[str, Any]) -> Reference:
    bounds, limits = found["bounds"], found["limits"]
    if bounds is not None:
        bounds = NormBounds((bounds["limits"][0], bounds["limits"][1]), tuple(bounds["positions"]))
    return Reference(bounds, None if limits is None else (limits[0], limits[1]))

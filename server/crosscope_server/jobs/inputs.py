"""Reads the inputs that a recipe names: folders of models, files of data.

Says nothing about a path outside the roots, not even whether it exists. Reads only small files and first rows. Knows
nothing about gRPC.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from crosscope_proto.roots import Roots

MAX_FILES = 10_000
MAX_BYTES = 1 << 20
"""Most bytes that are read of a configuration, or of a file's first rows."""
MAX_ROW_GROUP_BYTES = 1 << 26
"""If the first row group of a Parquet file is larger, only its schema is read."""
_HUB_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")


def is_hub_id(text: str) -> bool:
    """Whether a text can be the name of a repository: `name` or `owner/name`."""
    parts = text.split("/")
    well_formed = all(_HUB_NAME.fullmatch(part) and len(part) <= 96 for part in parts)
    return len(parts) <= 2 and well_formed and "--" not in text and ".." not in text


@dataclass(frozen=True)
class Model:
    """What the configuration of a model says; None where it says nothing."""

    num_layers: int | None
    width: int | None
    size_bytes: int
    """Size of its weight files."""
    dtype: str
    vocab_size: int | None = None
    is_tied: bool = True
    """Whether its head has the weights of its embeddings."""

    @property
    def parameters(self) -> int:
        """Number of its weights."""
        return self.size_bytes // bytes_of(self.dtype)

    @property
    def layer_parameters(self) -> float | None:
        """About how many weights one decoder layer has."""
        if not (self.num_layers and self.width and self.vocab_size):
            return None
        embeddings = self.vocab_size * self.width * (1 if self.is_tied else 2)
        return max(0, self.parameters - embeddings) / self.num_layers


def bytes_of(dtype: str) -> int:
    """Bytes of a number of a data type; float32's for an unknown one."""
    return {"bfloat16": 2, "float16": 2}.get(dtype.removeprefix("torch."), 4)


def read_model(folder: Path, coming: Mapping[str, int] | None = None) -> Model | str:
    """The model in `folder`, or a sentence about what is wrong with it.

    `coming` are files of a store that need not be here: bytes by their path below the folder.
    """
    path = folder / "config.json"
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(MAX_BYTES))
    except FileNotFoundError:
        return f"there is no config.json in {folder}; give the folder of a saved model"
    except (OSError, ValueError, RecursionError) as error:
        return f"{path} cannot be read: {' '.join(str(error).split())[:200]}"
    if not isinstance(document, dict):
        return f"{path} is not the configuration of a model: it must be a JSON object"
    here = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    weights = {
        name: size for name, size in {**(coming or {}), **here}.items() if name.endswith((".safetensors", ".bin"))
    }
    if not weights:
        return f"there are no weights (*.safetensors) in {folder}"
    text = document.get("text_config")
    inner: Mapping[str, Any] = text if isinstance(text, dict) else document
    dtype = inner.get("dtype") or inner.get("torch_dtype") or document.get("torch_dtype") or "float32"
    size_bytes = sum(weights.values())
    return Model(
        _first_int(inner, _LAYERS),
        _first_int(inner, _WIDTHS),
        size_bytes,
        str(dtype),
        _first_int(inner, ("vocab_size",)),
        inner.get("tie_word_embeddings", document.get("tie_word_embeddings", True)) is not False,
    )


def _first_int(document: Mapping[str, Any], names: Sequence[str]) -> int | None:
    found = (document.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), None)


def find_files(path: str, folders: Sequence[Path], roots: Roots) -> list[Path] | None:
    """The files of a data set in the order in which the job reads them; None if they lie outside the roots."""
    pattern = Path(path).expanduser()
    below = list(folders)
    if pattern.is_absolute():
        below, pattern = [Path(pattern.anchor)], pattern.relative_to(pattern.anchor)
    fixed = Path(*_until_glob(pattern))
    for folder in below:
        if not roots.allows(folder / fixed):
            return None
        found = sorted(islice((each for each in folder.glob(str(pattern)) if each.is_file()), MAX_FILES))
        if found:
            return found if all(map(roots.allows, found)) else None
    return []


def _until_glob(pattern: Path) -> Iterator[str]:
    for part in pattern.parts:
        if any(sign in part for sign in "*?["):
            return
        yield part


@dataclass(frozen=True)
class FirstRows:
    """The beginning of a data set's first file."""

    first: Sequence[Mapping[str, Any]]
    num_read_bytes: int
    """Bytes of the file that those rows take."""
    num_rows: int | None
    """Rows of the whole file; None if unknown."""
    columns: tuple[str, ...] | None
    """Columns that the file's schema names; None if it has no schema."""


def read_rows(file: Path, source: str, at_most: int) -> FirstRows | str:
    """At most `at_most` rows of a file, or a sentence about what is wrong with it."""
    try:
        return _parquet(file, at_most) if source == "parquet" else _lines(file, source, at_most)
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        return f"{file} cannot be read as {source}: {' '.join(str(error).split())[:200]}"


def _parquet(file: Path, at_most: int) -> FirstRows:
    with pq.ParquetFile(file) as table:
        columns, meta = tuple(table.schema_arrow.names), table.metadata
        first: list[dict[str, Any]] = []
        if meta.num_row_groups and meta.row_group(0).total_byte_size <= MAX_ROW_GROUP_BYTES:
            batch = next(table.iter_batches(batch_size=at_most, row_groups=[0]), None)
            first = [] if batch is None else batch.to_pylist()
        return FirstRows(first, 0, meta.num_rows, columns)


def _lines(file: Path, source: str, at_most: int) -> FirstRows:
    rows: list[Mapping[str, Any]] = []
    size = 0
    with file.open("rb") as lines:
        while len(rows) < at_most and size < MAX_BYTES and (line := lines.readline(MAX_BYTES + 1)):
            if len(line) > MAX_BYTES:
                break
            size += len(line)
            if not line.strip():
                continue
            text = line.decode("utf-8")
            row = {"text": text} if source == "text" else json.loads(text)
            if not isinstance(row, dict):
                raise ValueError(f"row {len(rows) + 1} is not a JSON object")
            rows.append(row)
        ended = not lines.read(1)
    return FirstRows(rows, size, len(rows) if ended else None, None)

"""Which files of a hub data set are dealt to the streams of a training, so that each stream reads its own alone.

A row keeps the number that it has in the whole data set, because that says whether it is held out. So a stream must
know how many rows other streams' files have. Only Parquet says that without being read, at the end of each file.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from datasets import DatasetBuilder, IterableDataset


@dataclass(frozen=True)
class FilePlace:
    """One of a data set's files."""

    file: int = -1
    """Its index; -1: none yet."""
    first_row: int = 0
    """Number of its first row in the data set."""


def files_to_deal(
    builder: "DatasetBuilder", stream: "IterableDataset", split: str, num_parts: int
) -> tuple[list[str], str]:
    """The files of a split in their order if they can be dealt to so many parts, each at least one; else the reason.

    `stream`: the rows of all of them.
    """
    from datasets.packaged_modules.parquet.parquet import Parquet, ParquetConfig

    config = builder.config
    if not isinstance(builder, Parquet) or not isinstance(config, ParquetConfig):
        return [], "its files are no Parquet"
    if config.filters is not None or config.on_bad_files != "error":
        return [], "its own settings leave out rows or files"
    files = [str(file) for file in (config.data_files or {}).get(split, ())]
    if len(files) != stream.num_shards:
        return [], f"split {split} is no list of files"
    if len(files) < num_parts:
        return [], f"it has {len(files)} {'file' if len(files) == 1 else 'files'} for {num_parts} streams"
    return files, ""


def about_dealing(files: list[str], why_not: str, num_parts: int) -> str:
    """A sentence about what each stream reads."""
    if files:
        return f"its {len(files)} Parquet files are dealt to {num_parts} streams, each of which reads its own alone"
    return (
        f"{why_not}, so each of the {num_parts} streams downloads and reads all of it and uses one text of "
        f"{num_parts}; {(num_parts - 1) / num_parts:.0%} of what is read is read in vain"
    )


def rows_of(files: Iterable[str]) -> int:
    """Number of rows of Parquet files in all; reads the end of each."""
    total = 0
    for file in files:
        remote: Any = fsspec.open(file, "rb")
        with remote as opened:
            total += pq.read_metadata(opened).num_rows
    return total

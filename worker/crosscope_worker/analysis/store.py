"""The store of a pass: each distinct text once, and the segments in which every latent fires.

A segment is one latent in one text: its largest activation, the position of that, and a run of (position, value)
entries. Memory: 22 bytes a segment, 30 for a moment while `segments` joins them, and 6 bytes a token of text. The
entries, 6 bytes each, lie in a temporary file that has no name and vanishes with the process. A text with the same
tokens as an earlier text of its data set is counted there and left out, because the same latents fire in the same way.

Does not know which segments are shown.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from crosscope_worker.analysis.block import Block
from crosscope_worker.analysis.errors import AnalysisError

if TYPE_CHECKING:
    from crosscope_worker.data.texts import Text

ENTRY = np.dtype([("position", "<u2"), ("value", "<f4")])
MAX_LENGTH = 1 << 16


@dataclass(frozen=True)
class Segments:
    """Every (latent, text) in which the latent fires; arrays are [segment]."""

    latent: NDArray[np.uint32]
    text: NDArray[np.uint32]
    """Index into Store.texts."""
    max: NDArray[np.float32]
    peak: NDArray[np.uint16]
    """First position with the largest activation."""
    start: NDArray[np.uint64]
    """Index of its first entry."""
    length: NDArray[np.uint32]
    """Number of its entries."""

    @classmethod
    def empty(cls) -> Self:
        """No segments."""
        return cls(
            np.empty(0, np.uint32),
            np.empty(0, np.uint32),
            np.empty(0, np.float32),
            np.empty(0, np.uint16),
            np.empty(0, np.uint64),
            np.empty(0, np.uint32),
        )

    def at(self, indices: NDArray[np.integer[Any]]) -> "Segments":
        """Some of the segments, in the given order."""
        return Segments(**{name: array[indices] for name, array in vars(self).items()})


class Store:
    """Collects texts and segments during the pass, and gives them back after it."""

    def __init__(self) -> None:
        self.texts: list[Text] = []
        self.copies: list[int] = []
        """Number of times that each of the texts occurred."""
        self._seen: dict[tuple[int, bytes], int] = {}
        self._kept: list[int] = []
        self._starts: list[int] = []
        self._read = bytearray()
        """Of each token of the texts, 1 if a block has it."""
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._num_entries = 0
        self._parts = {name: [array] for name, array in vars(Segments.empty()).items()}

    def add_text(self, text: "Text") -> None:
        """Registers the next text; `Block.text` counts the texts in this order."""
        ids = np.ascontiguousarray(text.ids, dtype=np.int64)
        if len(ids) > MAX_LENGTH:
            raise AnalysisError(f"a text has {len(ids)} tokens, more than {MAX_LENGTH}; lower tokens.max_length")
        key = (int(text.dataset), hashlib.blake2b(ids.tobytes(), digest_size=16).digest())
        if (known := self._seen.get(key)) is not None:
            self._kept.append(-1)
            self.copies[known] += 1
            return
        self._seen[key] = len(self.texts)
        self._kept.append(len(self.texts))
        self._starts.append(len(self._read))
        self._read.extend(bytes(len(ids)))
        self.texts.append(text)
        self.copies.append(1)

    def add(self, block: Block) -> None:
        """Adds a block's entries.

        Raises AnalysisError when the disk for temporary files is full.
        """
        kept = np.asarray(self._kept)
        tokens = block.tokens.cpu().numpy()
        text_of = kept[block.text.cpu().numpy()]
        position = block.position.cpu().numpy()
        first = text_of >= 0
        np.frombuffer(self._read, np.uint8)[np.asarray(self._starts, np.int64)[text_of[first]] + position[first]] = 1
        text = text_of[tokens]
        ours = text >= 0
        tokens, text = tokens[ours], text[ours]
        if len(text) == 0:
            return
        latent = block.latents.cpu().numpy()[ours]
        value = block.scaled.cpu().numpy()[ours]
        position = position[tokens]
        begins = np.flatnonzero(np.concatenate([[True], (latent[1:] != latent[:-1]) | (text[1:] != text[:-1])]))
        length = np.diff(np.append(begins, len(latent)))
        largest = np.maximum.reduceat(value, begins)
        at_peak = np.where(value == np.repeat(largest, length), position, MAX_LENGTH)
        part = Segments(
            latent=latent[begins].astype(np.uint32),
            text=text[begins].astype(np.uint32),
            max=largest.astype(np.float32),
            peak=np.minimum.reduceat(at_peak, begins).astype(np.uint16),
            start=(begins + self._num_entries).astype(np.uint64),
            length=length.astype(np.uint32),
        )
        for name, array in vars(part).items():
            self._parts[name].append(array)
        entries = np.empty(len(value), ENTRY)
        entries["position"], entries["value"] = position, value
        try:
            self._file.write(entries.tobytes())
        except OSError as error:
            raise AnalysisError(
                f"no room for {entries.nbytes} more bytes of codes in {tempfile.gettempdir()} "
                f"({self._num_entries * ENTRY.itemsize} written); free space there, set TMPDIR, or "
                "lower analysis.max_tokens"
            ) from error
        self._num_entries += len(entries)

    def segments(self) -> Segments:
        """All segments, in the order in which they came."""
        for name, arrays in self._parts.items():
            self._parts[name] = [np.concatenate(arrays)] if len(arrays) > 1 else arrays
        return Segments(**{name: array for name, (array,) in self._parts.items()})

    def entries(self, start: NDArray[np.integer[Any]], length: NDArray[np.integer[Any]]) -> NDArray[np.void]:
        """The ENTRYs of some segments, one segment's after the other."""
        if self._num_entries == 0 or len(start) == 0:
            return np.empty(0, ENTRY)
        self._file.flush()
        everything = np.memmap(self._file, ENTRY, mode="r", shape=(self._num_entries,))
        return np.asarray(everything[ranges(start, length)])

    def was_read(self) -> NDArray[np.bool_]:
        """[token] of all texts, end to end: whether the pass read it, or the token policy left it out."""
        return np.frombuffer(bytes(self._read), np.bool_)

    def close(self) -> None:
        """Frees the temporary file."""
        self._file.close()


def ranges(start: NDArray[np.integer[Any]], length: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """`start[0], start[0]+1, …` for `length[0]` entries, then the same for each further range."""
    start, length = start.astype(np.int64), length.astype(np.int64)
    ends = np.cumsum(length)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(start - (ends - length), length)


def runs(sizes: NDArray[np.integer[Any]], limit: int, most: int | None = None) -> Iterator[tuple[int, int]]:
    """Cuts things of the given sizes, in their order, into runs `first, last` whose sizes sum to at most `limit`.

    A run has at least one thing, which may be larger than `limit`, and at most `most` things.
    """
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        done = ends[first - 1] if first else 0
        last = int(np.searchsorted(ends, done + limit, side="right"))
        last = max(first + 1, last if most is None else min(last, first + most))
        yield first, last
        first = last

"""The store of a pass: each distinct text once, and the segments in which every latent fires.

A segment is one latent in one text: its largest activation, the position of that, and a run of (position, value)
entries. Memory: 22 bytes a segment, 30 for a moment while `segments` joins them, and 6 bytes a token of text. The
entries, 6 bytes each, lie in a file: a temporary one that has no name and vanishes with the process, unless one is
named. A text with the same tokens as an earlier text of its data set is counted there and left out, because the same
latents fire in the same way. Stores of several passes over different texts merge.

Does not know which segments are shown.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crosscope_worker.analysis.block import Block
from crosscope_worker.analysis.errors import AnalysisError
from crosscope_worker.data.texts import TaggedBehaviour, Text

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

    def __init__(self, path: Path | None = None) -> None:
        """`path`: a file for the entries, which stays; None: a temporary one."""
        self._folder = tempfile.gettempdir() if path is None else str(path.parent)
        self.texts: list[Text] = []
        self.copies: list[int] = []
        """Number of times that each of the texts occurred."""
        self._seen: dict[tuple[int, bytes], int] = {}
        self._kept: list[int] = []
        self._starts: list[int] = []
        self._read = bytearray()
        """Of each token of the texts, 1 if a block has it."""
        self._file: BinaryIO = tempfile.TemporaryFile() if path is None else path.open("w+b")  # noqa: SIM115 - closed by close()
        self._num_entries = 0
        """In the file."""
        self._others: list[NDArray[np.void]] = []
        """Entries of other stores, which come behind those of the file."""
        self._parts = {name: [array] for name, array in vars(Segments.empty()).items()}

    def add_text(self, text: Text) -> None:
        """Registers the next text; `Block.text` counts the texts in this order."""
        length = len(text.ids)
        if length > MAX_LENGTH:
            raise AnalysisError(f"a text has {length} tokens, more than {MAX_LENGTH}; lower tokens.max_length")
        self._kept.append(self._registered(_key(text), text, 1, bytes(length)))

    def _registered(self, key: tuple[int, bytes], text: Text, copies: int, read: bytes) -> int:
        """The number of a text that is new, or -1."""
        if (known := self._seen.get(key)) is not None:
            self.copies[known] += copies
            return -1
        self._seen[key] = number = len(self.texts)
        self._starts.append(len(self._read))
        self._read.extend(read)
        self.texts.append(text)
        self.copies.append(copies)
        return number

    def add(self, block: Block) -> None:
        """Adds a block's entries.

        Raises AnalysisError when the disk for temporary files is full.
        """
        assert not self._others, "its entries follow those of its own file"
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
        self._append(part)
        entries = np.empty(len(value), ENTRY)
        entries["position"], entries["value"] = position, value
        try:
            self._file.write(entries.tobytes())
        except OSError as error:
            raise AnalysisError(
                f"no room for {entries.nbytes} more bytes of codes in {self._folder} "
                f"({self._num_entries * ENTRY.itemsize} written); free space there, or lower analysis.max_tokens"
            ) from error
        self._num_entries += len(entries)

    def segments(self) -> Segments:
        """All segments, in the order in which they came."""
        for name, arrays in self._parts.items():
            self._parts[name] = [np.concatenate(arrays)] if len(arrays) > 1 else arrays
        return Segments(**{name: array for name, (array,) in self._parts.items()})

    def entries(self, start: NDArray[np.integer[Any]], length: NDArray[np.integer[Any]]) -> NDArray[np.void]:
        """The ENTRYs of some segments, one segment's after the other."""
        index, runs_ = ranges(start, length), self._runs()
        if len(runs_) == 1:
            return np.asarray(runs_[0][index])
        found, first = np.empty(len(index), ENTRY), 0
        for run in runs_:
            own = np.flatnonzero((index >= first) & (index < first + len(run)))
            found[own] = run[index[own] - first]
            first += len(run)
        return found

    def _runs(self) -> list[NDArray[np.void]]:
        """All entries: those of the file, then those of each store that was merged in."""
        self._file.flush()
        mapped = [np.memmap(self._file, ENTRY, "r", shape=(self._num_entries,))] if self._num_entries else []
        return [*mapped, *self._others]

    def merge(self, other: "Store") -> None:
        """Adds the texts and segments of a pass over other texts, which come behind; nothing is added after that.

        `other` is closed.
        """
        number = np.empty(len(other.texts), np.int64)
        for index, (key, text) in enumerate(zip(other._seen, other.texts, strict=True)):
            begin = other._starts[index]
            read = bytes(other._read[begin : begin + len(text.ids)])
            number[index] = self._registered(key, text, other.copies[index], read)
        found, offset = other.segments(), self._num_entries + sum(map(len, self._others))
        text = number[found.text]
        ours = np.flatnonzero(text >= 0)
        self._append(
            replace(found.at(ours), text=text[ours].astype(np.uint32), start=found.start[ours] + np.uint64(offset))
        )
        self._others += other._runs()
        other.close()

    def state(self) -> dict[str, Tensor]:
        """Everything but the entries, which are in the store's file."""
        words = [[text.place, [_plain(each) for each in text.behaviours]] for text in self.texts]
        arrays = {
            "ids": np.concatenate([np.empty(0, np.int64), *(text.ids for text in self.texts)]).astype(np.int32),
            "roles": np.concatenate([np.empty(0, np.uint8), *(text.roles for text in self.texts)]),
            "lengths": np.array([len(text.ids) for text in self.texts], np.int64),
            "dataset": np.array([text.dataset for text in self.texts], np.int64),
            "copies": np.array(self.copies, np.int64),
            "read": np.frombuffer(bytes(self._read), np.uint8),
            "words": np.frombuffer(json.dumps(words).encode(), np.uint8),
        }
        # Torch and its files know few unsigned numbers.
        segments = {f"segment_{name}": each.view(np.uint8) for name, each in vars(self.segments()).items()}
        return {name: torch.from_numpy(each.copy()) for name, each in (arrays | segments).items()}

    @classmethod
    def saved(cls, state: Mapping[str, Tensor], path: Path) -> Self:
        """The store that had this state and that wrote its entries to `path`."""
        store, arrays = cls(), {name: tensor.numpy() for name, tensor in state.items()}
        ends = np.cumsum(arrays["lengths"])
        words = json.loads(arrays["words"].tobytes())
        for index, (end, (place, behaviours)) in enumerate(zip(ends.tolist(), words, strict=True)):
            at = slice(end - int(arrays["lengths"][index]), end)
            ids, tagged = arrays["ids"][at].astype(np.int64), tuple(TaggedBehaviour(*each) for each in behaviours)
            text = Text(int(arrays["dataset"][index]), ids, arrays["roles"][at].copy(), tagged, place)
            store._registered(_key(text), text, int(arrays["copies"][index]), arrays["read"][at].tobytes())
        types = {name: array.dtype for name, array in vars(Segments.empty()).items()}
        store._append(Segments(**{name: arrays[f"segment_{name}"].copy().view(each) for name, each in types.items()}))
        if path.stat().st_size:
            store._others.append(np.memmap(path, ENTRY, "r"))
        return store

    def _append(self, part: Segments) -> None:
        for name, array in vars(part).items():
            self._parts[name].append(array)

    def was_read(self) -> NDArray[np.bool_]:
        """[token] of all texts, end to end: whether the pass read it, or the token policy left it out."""
        return np.frombuffer(bytes(self._read), np.bool_)

    def flush(self) -> None:
        """Hands all entries to the file."""
        self._file.flush()

    def close(self) -> None:
        """Frees the file."""
        self._file.close()


def _key(text: Text) -> tuple[int, bytes]:
    """What texts of one data set with the same tokens have in common."""
    ids = np.ascontiguousarray(text.ids, dtype=np.int64)
    return int(text.dataset), hashlib.blake2b(ids.tobytes(), digest_size=16).digest()


def _plain(tagged: TaggedBehaviour) -> tuple[str, int, int, int]:
    """Its fields, as JSON has them."""
    return tagged.name, int(tagged.decision), int(tagged.start), int(tagged.end)


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

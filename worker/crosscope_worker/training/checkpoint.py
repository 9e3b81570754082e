"""Checkpoints of a training: one folder each, complete or absent, which says nothing of the number of ranks.

    step-000000400/
        state.json                      step, recipe, counters, and which files there are
        latents-0-37.safetensors …      of the latents in these rows: weights, optimiser, counters; of each rank its own
        shared.safetensors              what all latents share
        stream-0.safetensors, stream-0.json …    what is left in a stream's buffer, and where its source stands

A new checkpoint is written to a temporary folder, synced and renamed; then the previous one is removed. So the newest
folder is whole, whenever the process dies. Several ranks write into one folder; the first one waits for the others'
marks (DONE) before it renames. A checkpoint of an earlier version has all tensors in one file. Knows nothing about the
meaning of the tensors.
"""

import json
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from crosscope_worker.disk import PARTIAL, is_no_room, move, sync, sync_tree
from crosscope_worker.training.tensor_file import write_tensors

SHARED = "shared.safetensors"
STATE = "state.json"
DONE = "done-"
"""Prefix of the empty file by which a rank says that all of its files are on the disk."""
_EARLIER = "tensors.safetensors"
"""The one file of tensors of an earlier version's checkpoint, in which the buffer's have the prefix `_BUFFER`."""
_BUFFER = "buffer."
_IN_STATE = ("step", "recipe", "counters")
_POLL_S = 0.02


class CheckpointError(ValueError):
    """A checkpoint from which training cannot continue."""


@dataclass(frozen=True)
class StreamState:
    """What is left of one stream."""

    tensors: dict[str, Tensor]
    """The state of its buffer."""
    source: dict[str, Any]
    """The state of its activations' source, plain JSON values."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training, as far as one rank holds it. Everything but the tensors is plain JSON values."""

    step: int
    tensors: dict[str, Tensor]
    """Rows of the latents held here, and what all ranks have alike."""
    recipe: dict[str, Any]
    counters: dict[str, Any]
    streams: dict[int, StreamState]
    """The streams of this rank, by number."""
    latents: frozenset[str] = frozenset()
    """Names of the tensors whose rows are latents."""

    @property
    def all_tensors(self) -> list[Tensor]:
        """The tensors of the training and of its streams."""
        return [*self.tensors.values(), *(each for stream in self.streams.values() for each in stream.tensors.values())]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.all_tensors)


@dataclass(frozen=True)
class Group:
    """The ranks that write one checkpoint."""

    rows: Sequence[slice] = (slice(0, 0),)
    """The latents of each rank."""
    rank: int = 0
    num_streams: int = 1
    start: str = ""
    """The same on all ranks, and another one whenever they are started."""
    given_up: Callable[[], bool] = lambda: False
    """Whether another rank will never be done."""


ONE = Group()
"""A rank alone, without tensors of latents."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, group: Group = ONE) -> None:
    """Writes what this rank holds of `folder/step-N`; the first rank waits for the others, and removes older ones.

    An existing `folder/step-N` is whole and stays. Raises OSError, for instance when the disk is full; then the
    previous checkpoint stays, and of several ranks also what is half written (`remove_partial`).
    """
    target = folder / f"step-{checkpoint.step:09d}"
    if target.exists():
        return
    partial = folder / f"{PARTIAL}{target.name}{group.start}"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _write(partial, checkpoint, group)
        if group.rank == 0 and _complete(partial, checkpoint, group):
            sync_tree(partial)
            move(partial, target)
            for old in _checkpoints(folder):
                if old != target:
                    shutil.rmtree(old)
    except OSError as error:
        if is_no_room(error):
            raise OSError(
                f"no room for the checkpoint of step {checkpoint.step} in {folder}: it takes "
                f"{checkpoint.size_bytes / 1e6:.1f} MB, and {shutil.disk_usage(folder).free / 1e6:.1f} MB are free"
            ) from error
        raise
    finally:
        if len(group.rows) == 1:  # Else others may still write there; whoever has started them removes it.
            shutil.rmtree(partial, ignore_errors=True)


def _write(partial: Path, checkpoint: Checkpoint, group: Group) -> None:
    """Writes the files of one rank; those of the first one are synced with the folder."""
    tensors = checkpoint.tensors
    rows = {name: tensor for name, tensor in tensors.items() if name in checkpoint.latents}
    files = {_rows_name(group.rows[group.rank]): rows}
    if group.rank == 0:
        files[SHARED] = {name: tensor for name, tensor in tensors.items() if name not in checkpoint.latents}
    for number, stream in checkpoint.streams.items():
        files[f"stream-{number}.safetensors"] = stream.tensors
        (partial / f"stream-{number}.json").write_text(json.dumps(stream.source), encoding="utf-8")
    for name, content in files.items():
        write_tensors(content, partial / name)
    if group.rank > 0:
        for name in (*files, *(f"stream-{number}.json" for number in checkpoint.streams)):
            sync(partial / name)
        (partial / f"{DONE}{group.rank}").touch()


def _complete(partial: Path, checkpoint: Checkpoint, group: Group) -> bool:
    """Waits until all other ranks are done, and says what there is; False if that will never be."""
    marks = [partial / f"{DONE}{rank}" for rank in range(1, len(group.rows))]
    while not all(mark.exists() for mark in marks):
        if group.given_up():
            return False
        time.sleep(_POLL_S)
    state: dict[str, Any] = {name: getattr(checkpoint, name) for name in _IN_STATE}
    state |= {"latents": [[rows.start, rows.stop] for rows in group.rows], "streams": group.num_streams}
    (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
    for mark in marks:
        mark.unlink()
    return True


def remove_partial(folder: Path) -> None:
    """Removes what killed processes have half written. Not while a training writes below `folder`."""
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def newest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint below `folder`; None without one."""
    found = _checkpoints(folder)
    return int(found[-1].name.removeprefix("step-")) if found else None


class Saved:
    """A checkpoint on the disk. Tensors are on the host, mapped from the files where they are asked for whole.

    What reads a file raises CheckpointError, which names it, if it is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = _read_json(folder / STATE)
        self._is_earlier = "source" in self._state
        for key in (*_IN_STATE, *(() if self._is_earlier else ("latents", "streams"))):
            if key not in self._state:
                raise _damaged(folder / STATE, f"lacks {key}")

    @property
    def step(self) -> int:
        """The training's steps before it."""
        return self._state["step"]

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the training."""
        return self._state["recipe"]

    @property
    def counters(self) -> dict[str, Any]:
        """The training's counters."""
        return self._state["counters"]

    @property
    def num_streams(self) -> int:
        """Number of streams of the training."""
        return 1 if self._is_earlier else self._state["streams"]

    def tensors(self, latents: frozenset[str], rows: slice) -> dict[str, Tensor]:
        """The tensors of the training; of those in `latents` the `rows`, from however many files they are in."""
        if self._is_earlier:
            whole = {name: each for name, each in _load(self.folder / _EARLIER).items() if not name.startswith(_BUFFER)}
            return {name: each[rows] if name in latents else each for name, each in whole.items()}
        found: dict[str, list[Tensor]] = {}
        for start, stop in self._state["latents"]:
            first, last = max(start, rows.start), min(stop, rows.stop)
            if first >= last:
                continue
            path = self.folder / _rows_name(slice(start, stop))
            is_whole = (first, last) == (start, stop)
            read = _load(path) if is_whole else _load_rows(path, slice(first - start, last - start))
            for name, tensor in read.items():
                found.setdefault(name, []).append(tensor)
        pieces = {name: each[0] if len(each) == 1 else torch.cat(each) for name, each in found.items()}
        return {**pieces, **_load(self.folder / SHARED)}

    def stream(self, number: int) -> StreamState:
        """The state of a stream."""
        if self._is_earlier:
            tensors = _load(self.folder / _EARLIER)
            held = {name.removeprefix(_BUFFER): each for name, each in tensors.items() if name.startswith(_BUFFER)}
            return StreamState(held, self._state["source"])
        name = f"stream-{number}"
        return StreamState(_load(self.folder / f"{name}.safetensors"), _read_json(self.folder / f"{name}.json"))

    def sources(self) -> list[dict[str, Any]]:
        """The states of the sources of all streams."""
        if self._is_earlier:
            return [self._state["source"]]
        return [_read_json(self.folder / f"stream-{number}.json") for number in range(self.num_streams)]


def load_checkpoint(folder: Path, recipe: dict[str, Any]) -> Saved | None:
    """The newest checkpoint below `folder`, or None.

    Raises CheckpointError if it is damaged or was made by another recipe; in the second case the message names the
    first field that differs. The number of devices may differ.
    """
    found = _checkpoints(folder)
    if not found:
        return None
    saved = Saved(found[-1])
    if (difference := _first_difference(_compared(saved.recipe), _compared(recipe))) is not None:
        raise CheckpointError(
            f"{found[-1]} was made by another recipe: {difference}; give the job another name or remove the folder"
        )
    return saved


def _compared(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without what a training may change when it goes on."""
    if not isinstance(training := recipe.get("training"), dict):
        return recipe
    return recipe | {"training": {name: value for name, value in training.items() if name != "devices"}}


def _rows_name(rows: slice) -> str:
    return f"latents-{rows.start}-{rows.stop}.safetensors"


def _load(path: Path) -> dict[str, Tensor]:
    with _reading(path):
        return load_file(path)


def _load_rows(path: Path, rows: slice) -> dict[str, Tensor]:
    with _reading(path), safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name)[rows] for name in file.keys()}  # noqa: SIM118 - it is no dict


@contextmanager
def _reading(path: Path) -> Generator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _damaged(path, f"is missing, damaged or cut short ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, f"is missing, damaged or cut short ({error})") from error
    if not isinstance(state, dict):
        raise _damaged(path, "is damaged: it holds no JSON object")
    return state


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {what}; remove {path.parent} to continue from the checkpoint before, or to start over"
    )


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _first_difference(found: Any, wanted: Any, path: str = "") -> str | None:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            name = f"{path}.{key}" if path else key
            if _says_nothing(found.get(key)) and _says_nothing(wanted.get(key)):
                continue
            if key not in found or key not in wanted:
                return f"another version of crosscope made it, {'without' if key in wanted else 'with'} {name}"
            if (difference := _first_difference(found[key], wanted[key], name)) is not None:
                return difference
        return None
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return next((said for i, pair in pairs if (said := _first_difference(*pair, f"{path}[{i}]")) is not None), None)
    return None if found == wanted else f"{path} was {found!r} and is {wanted!r}"


def _says_nothing(value: Any) -> bool:
    """Whether a missing field means the same as this value. Older recipes had the fields of every dictionary."""
    return value is None or value == 0.0

"""Checkpoints of a training: one folder each, complete or absent.

A new checkpoint is written to a temporary folder, synced and renamed; then the previous one is removed. So the newest
folder is whole, whenever the process dies. Knows nothing about the meaning of the tensors.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crosscope_worker.disk import is_no_room, whole_folder
from crosscope_worker.training.tensor_file import write_tensors

TENSORS = "tensors.safetensors"
STATE = "state.json"
_IN_STATE = ("step", "recipe", "counters", "source")


class CheckpointError(ValueError):
    """A checkpoint from which training cannot continue."""


@dataclass(frozen=True)
class Checkpoint:
    """The whole state of a training. Everything but the tensors is plain JSON values."""

    step: int
    tensors: dict[str, Tensor]
    recipe: dict[str, Any]
    counters: dict[str, Any]
    source: dict[str, Any]
    """The state of the activations' source."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `folder/step-N` and removes older checkpoints; an existing `folder/step-N` is whole and stays.

    Raises OSError, for instance when the disk is full; then the previous checkpoint stays.
    """
    target = folder / f"step-{checkpoint.step:09d}"
    if target.exists():
        return
    try:
        with whole_folder(target) as partial:
            write_tensors(checkpoint.tensors, partial / TENSORS)
            state = {name: getattr(checkpoint, name) for name in _IN_STATE}
            (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
    except OSError as error:
        if is_no_room(error):
            size = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
            raise OSError(
                f"no room for the checkpoint of step {checkpoint.step} in {folder}: it takes {size / 1e6:.1f} MB, and "
                f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free"
            ) from error
        raise
    for old in _checkpoints(folder):
        if old != target:
            shutil.rmtree(old)


def load_checkpoint(folder: Path, recipe: dict[str, Any]) -> Checkpoint | None:
    """The newest checkpoint below `folder`, or None. Its tensors are on the host, mapped from the file.

    Raises CheckpointError if it is damaged or was made by another recipe; in the second case the message names the
    first field that differs.
    """
    found = _checkpoints(folder)
    if not found:
        return None
    state = _read_state(found[-1])
    if (difference := _first_difference(state["recipe"], recipe)) is not None:
        raise CheckpointError(
            f"{found[-1]} was made by another recipe: {difference}; give the job another name or remove the folder"
        )
    try:
        tensors = load_file(found[-1] / TENSORS)
    except (OSError, SafetensorError) as error:
        raise _damaged(found[-1] / TENSORS, f"is missing, damaged or cut short ({error})") from error
    return Checkpoint(tensors=tensors, **state)


def _read_state(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, f"is missing, damaged or cut short ({error})") from error
    if not isinstance(state, dict):
        raise _damaged(path, "is damaged: it holds no JSON object")
    if missing := [key for key in _IN_STATE if key not in state]:
        raise _damaged(path, f"lacks {missing[0]}")
    return {key: state[key] for key in _IN_STATE}


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

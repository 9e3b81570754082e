"""Checkpoints of a training: one folder each, complete or absent.

A checkpoint is written beside, synced and renamed, then the one before is removed: whenever the process dies, the
newest folder is whole. Knows nothing of what the tensors mean.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crosscope_worker.disk import sync

TENSORS = "tensors.safetensors"
STATE = "state.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued from."""


@dataclass(frozen=True)
class Checkpoint:
    """A training's whole state."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """Plain JSON values."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `folder/step-N` and removes older ones.

    Raises OSError, for instance when the disk is full; the checkpoint before then stays.
    """
    target = folder / f"step-{checkpoint.step:09d}"
    partial = folder / f".partial-{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, partial / TENSORS)
        (partial / STATE).write_text(json.dumps(checkpoint.state | {"step": checkpoint.step}), encoding="utf-8")
        for path in (partial / TENSORS, partial / STATE, partial):
            sync(path)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(folder)
    for old in _checkpoints(folder):
        if old != target:
            shutil.rmtree(old)


def load_checkpoint(folder: Path, recipe: dict[str, Any], device: torch.device | str = "cpu") -> Checkpoint | None:
    """The newest checkpoint below `folder`, its tensors on `device`, or None.

    Raises CheckpointError if it was made by another recipe (`state["recipe"]`), naming the first field that differs.
    """
    found = _checkpoints(folder)
    if not found:
        return None
    state = json.loads((found[-1] / STATE).read_text(encoding="utf-8"))
    if (difference := _first_difference(state.get("recipe"), recipe)) is not None:
        raise CheckpointError(
            f"{found[-1]} was made by another recipe: {difference}; give the job another name or remove the folder"
        )
    tensors = {name: tensor.to(device) for name, tensor in load_file(found[-1] / TENSORS).items()}
    return Checkpoint(state["step"], tensors, state)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _first_difference(found: Any, wanted: Any, path: str = "") -> str | None:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            difference = _first_difference(found.get(key), wanted.get(key), f"{path}.{key}" if path else key)
            if difference is not None:
                return difference
        return None
    return None if found == wanted else f"{path} was {found!r} and is {wanted!r}"

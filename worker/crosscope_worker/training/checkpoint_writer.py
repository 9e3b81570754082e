"""Writes checkpoints beside a training: a copy is taken between two steps, and a thread writes it.

The training stands still for the copy alone, which lies on the device of the tensors and is used again by every
checkpoint. Where there is no room for it, the training waits until its own tensors are written. Knows nothing about
the meaning of the tensors.
"""

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from crosscope_worker.training.checkpoint import ONE, Checkpoint, Group, StreamState, save_checkpoint
from crosscope_worker.training.memory import room_beside

_ROOM_SHARE = 0.9
"""Most of the free memory that the copy may take."""
_WORTH_SAYING_S = 0.5
"""Waits that are shorter are not told."""
Write = Callable[[Path, Checkpoint, Group], None]


@dataclass(frozen=True, eq=False)
class _Copy:
    """A checkpoint that nothing changes any more."""

    checkpoint: Checkpoint
    """Its streams' sources are copies too."""
    ready: torch.Event | None
    """On a GPU: when the copy is made."""
    device: torch.device


class CheckpointWriter:
    """The checkpoints of one training below a folder. A context: at its end the last one is written, whatever happened.

    An error of the thread is raised by the next `save` or `check`, or at the end; if the training itself ends with an
    error, it is added to that as a note.
    """

    def __init__(
        self, folder: Path, say: Callable[[str], None], group: Group = ONE, write: Write = save_checkpoint
    ) -> None:
        """`say` hears sentences: of a checkpoint that is waited for, and once of missing room for the copy.

        `group`: the ranks that write together. If a training on several ranks ends with an
        error, the others' parts of the last checkpoint are not waited for.
        """
        self._folder, self._say, self._write = folder, say, write
        self._alone = threading.Event()
        self._group = replace(group, given_up=self._alone.is_set)
        self._held: dict[str, Tensor] = {}
        """The copy's memory, by name, flat."""
        self._has_room: bool | None = None
        """Whether there is room for the copy; None before the first checkpoint."""
        self._thread: threading.Thread | None = None
        self._step = 0
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._alone.set()
        self._wait()
        self._held.clear()
        if self._error is not None and error is not None:
            error.add_note(f"The checkpoint of step {self._step} could not be written either: {self._error}")
        else:
            self.check()

    def check(self) -> None:
        """Raises the error of the thread, if it had one: OSError, for instance when the disk is full."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint (`save_checkpoint`); its tensors may change as soon as this returns.

        An earlier one that is still being written is waited for. Raises `check`'s errors.
        """
        began, waits = time.monotonic(), self._thread is not None
        self._wait()
        if waits and (took := time.monotonic() - began) > _WORTH_SAYING_S:
            self._say(f"waited {took:.1f} s until the checkpoint of step {self._step} was written")
        self.check()
        self._step = checkpoint.step
        if (copy := self._copied(checkpoint)) is None:
            self._write(self._folder, checkpoint, self._group)
            return
        self._thread = threading.Thread(target=self._run, args=(copy,), name="checkpoint")
        self._thread.start()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, copy: _Copy) -> None:
        try:
            stream = nullcontext()
            if (
                copy.ready is not None
            ):  # A stream of its own, so that no copy to the host waits for the training's work.
                own = torch.cuda.Stream(copy.device)
                own.wait_event(copy.ready)
                stream = torch.cuda.stream(own)
            with torch.no_grad(), stream:
                self._write(self._folder, copy.checkpoint, self._group)
        except BaseException as error:  # The training's thread raises it.
            self._error = error

    def _copied(self, checkpoint: Checkpoint) -> _Copy | None:
        """A copy of a checkpoint, or None where there is no room for one."""
        device = max(checkpoint.all_tensors, key=lambda each: each.nbytes).device
        if self._has_room is None:
            self._has_room = self._fits(checkpoint.size_bytes, device)
        if not self._has_room:
            return None
        found = {name: self._copy_of(name, tensor) for name, tensor in checkpoint.tensors.items()}
        streams = {
            number: StreamState(
                {name: self._copy_of(f"stream {number} {name}", tensor) for name, tensor in stream.tensors.items()},
                deepcopy(stream.source),
            )
            for number, stream in checkpoint.streams.items()
        }
        ready = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        return _Copy(replace(checkpoint, tensors=found, streams=streams), ready, device)

    def _fits(self, size: int, device: torch.device) -> bool:
        room = room_beside(device)
        if size <= _ROOM_SHARE * room:
            return True
        self._say(
            f"a copy of the checkpoint takes {size / 1e9:.1f} GB and {room / 1e9:.1f} GB are free: training waits "
            "while checkpoints are written"
        )
        return False

    def _copy_of(self, name: str, tensor: Tensor) -> Tensor:
        held = self._held.get(name)
        if held is None or held.numel() < tensor.numel():
            self._held.pop(name, None)  # Its memory is free before more is asked for.
            held = self._held[name] = tensor.new_empty(tensor.numel())
        return held[: tensor.numel()].view(tensor.shape).copy_(tensor)

"""The processes that train one dictionary together, one a device: ranks, and what they send each other.

A process alone is one rank, and then nothing here calls torch.distributed. All calls are collective: every rank makes
the same ones in the same order.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _tell_nobody(_: BaseException) -> None:
    """What a process alone does about an error, before it raises it."""


@dataclass(frozen=True)
class Ranks:
    """One of the processes, and how many there are."""

    rank: int = 0
    size: int = 1
    tell: Callable[[BaseException], None] = field(default=_tell_nobody, compare=False)
    """Tells whoever started the ranks of an error that ends this one. Called before anything is closed, which may wait
    for the other ranks, or for a device that waits for them; of several calls the first counts."""

    @classmethod
    def of_process_group(cls, tell: Callable[[BaseException], None] = _tell_nobody) -> "Ranks":
        """The ranks of torch's default process group, which torchrun or Ray has started."""
        return cls(dist.get_rank(), dist.get_world_size(), tell)

    def share(self, number: int) -> slice:
        """The contiguous part of `number` things that is this rank's; parts differ by one at most."""
        return parts(number, self.size)[self.rank]

    def sum(self, tensor: Tensor) -> Tensor:
        """Sums `tensor` over all ranks in place, and returns it; the same bits on every rank."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def join(self, tensor: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """The tensors of all ranks, one behind the other along the first dimension, whose length may differ.

        `lengths`: those of all ranks, where each knows them; else they are asked for, which waits for the device.
        """
        if self.size == 1:
            return tensor
        lengths = lengths or self.stack(torch.tensor(len(tensor), device=tensor.device)).tolist()
        padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        return torch.cat([each[:length] for each, length in zip(self.stack(padded), lengths, strict=True)])

    def stack(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, which have one shape, as [rank, ...]."""
        if self.size == 1:
            return tensor[None]
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(found, tensor.contiguous())
        return torch.stack(found)

    def table(self, row: Sequence[float]) -> list[list[float]]:
        """A row of numbers of each rank, in their order; all as long. On the host, so it waits for no device."""
        return self.stack(torch.tensor(row, dtype=torch.float64)).tolist()

    def once(self, tensor: Tensor) -> Tensor:
        """What each rank adds to a sum in which `tensor`, which all ranks have, counts once: the first has it, the
        others zeros.
        """
        return tensor if self.rank == 0 else torch.zeros_like(tensor)

    def everyone(self, value: Any) -> list[Any]:
        """The values, which can be pickled, of all ranks in their order. Slow: for starts, ends and checkpoints."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found


ALONE = Ranks()


def parts(number: int, size: int) -> list[slice]:
    """`size` contiguous parts of `number` things, whose lengths differ by one at most."""
    each, more = divmod(number, size)
    starts = [rank * each + min(rank, more) for rank in range(size + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(starts)]

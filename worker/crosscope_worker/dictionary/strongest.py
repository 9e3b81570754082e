"""Entries of sparse codes, strongest first, in the CPU's memory: what is answered.

On CUDA the device sorts, and all that is answered comes in one copy. The order is the same everywhere.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from crosscope_worker.dictionary.sparse import SparseCode
from crosscope_worker.dictionary.sparsifier import Sparsifier


def by_strength(code: SparseCode, sparsifier: Sparsifier, *beside: Tensor) -> tuple[np.ndarray, ...]:
    """Token, latent and scaled activation of every entry, by token, strongest first, ties to the lower latent; [entry]
    each. And what comes `beside` them, as it is.
    """
    columns = code.tokens, code.latents, sparsifier.scaled_entries(code)
    if code.values.device.type != "cpu":
        order = _order(*columns[::2])
        return fetched([*(column[order] for column in columns), *beside])
    tokens, latents, activations = (column.numpy() for column in columns)
    order = np.lexsort((-activations, tokens))
    return tokens[order], latents[order], activations[order], *(each.numpy() for each in beside)


def _order(tokens: Tensor, activations: Tensor) -> Tensor:
    """The order of entries by token, then by falling activation, [entry] int64; equals keep theirs."""
    order = torch.argsort(activations, descending=True, stable=True)
    return order[torch.argsort(tokens[order], stable=True)]


def fetched(tensors: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
    """Tensors of one device in the CPU's memory, in a single copy."""
    widest_first = sorted(range(len(tensors)), key=lambda index: -tensors[index].element_size())
    raw = [tensors[index].contiguous().view(torch.uint8).flatten() for index in widest_first]
    together = torch.cat(raw)
    there = torch.empty(together.shape, dtype=torch.uint8, pin_memory=together.is_cuda)
    there.copy_(together, non_blocking=True)
    if together.is_cuda:
        torch.cuda.current_stream(together.device).synchronize()
    found: dict[int, np.ndarray] = {}
    for index, part in zip(widest_first, there.split([len(each) for each in raw]), strict=True):
        found[index] = part.view(tensors[index].dtype).view(tensors[index].shape).numpy()
    return tuple(found[index] for index in range(len(tensors)))

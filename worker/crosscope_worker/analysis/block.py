"""A block: the tokens of a few whole texts with their codes, ordered for sums per latent.

Everything is in the crosscoder's own input space: `x` is the models' activation times `input_scale` (what the encoder
reads), and `x_hat` is the sum of the decoder rows before division by `input_scale`. Decoder rows, relative norms and
the training loss live in that space. With raw activations every coefficient of model m along a row of model n would be
multiplied by `scale_n / scale_m`: nu along chat rows by `scale_chat / scale_base`, the mirrored nu by its inverse. With
equal scales nothing changes.

Knows nothing about what is summed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.sparse import bag_sums
from crosscope_worker.dictionary.sparsifier import Sparsifier

ROW_SUM_BYTES = 64 << 20
"""Memory for row sums at a time on a CPU; latents are cut into pieces that fit into it."""
_MOST_SCRATCH_BYTES = 2 << 30


def scratch_bytes(device: torch.device, on_cpu: int) -> int:
    """Memory for large results at a time: `on_cpu`; on a GPU, where each piece costs launches and waits, an eighth of
    the memory that is free, at most 2 GiB.
    """
    if device.type != "cuda":
        return on_cpu
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    return max(on_cpu, min(_MOST_SCRATCH_BYTES, free // 8))


@dataclass(frozen=True)
class Block:
    """Tokens of whole texts; entries are ordered by latent, then by token."""

    x: Tensor
    """[token, both] float32, scaled inputs."""
    error: Tensor
    """[token, both] float32, `x - x_hat`. For a dictionary of differences: NaN in base's columns, the error of the
    reconstructed difference in chat's. For a dictionary of one model: NaN in the other model's columns."""
    text: Tensor
    """[token] int64, the analysis's number of the text, ascending."""
    position: Tensor
    """[token] int64, in the text."""
    role: Tensor
    """[token] int64."""
    dataset: Tensor
    """[token] int64."""
    shard: Tensor
    """[token] int64, shard of the jackknife: the shard of the token's text, or of the earlier text that it repeats
    (math §4)."""
    repeats: Tensor
    """[token] bool, whether the token repeats an earlier text."""
    key: Tensor
    """[token] float64, uniform in [0, 1), from the token's place among all: samples are the tokens with small keys."""
    tokens: Tensor
    """[entry] int64."""
    latents: Tensor
    """[entry] int64."""
    values: Tensor
    """[entry] float32, raw code."""
    scaled: Tensor
    """[entry] float32, scaled activations (math §1)."""
    kept: Tensor
    """[model, entry] bool, whether the model's reconstruction has the entry; false only in a decoupled code."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return self.x.shape[0]


class TokenFacts(NamedTuple):
    """The facts about each token of a block besides its activation; see the fields of Block."""

    text: Tensor
    position: Tensor
    role: Tensor
    dataset: Tensor
    shard: Tensor
    repeats: Tensor
    key: Tensor


def encode_block(crosscoder: Crosscoder, x: Tensor, facts: TokenFacts, sparsifier: Sparsifier | None = None) -> Block:
    """Encodes `x: [token, both]`, activations as the models gave them, and orders the entries by latent.

    A `sparsifier` of the crosscoder that is given is used; a new one reads the whole decoder.
    """
    sparsifier = sparsifier or crosscoder.sparsifier()
    code = crosscoder.encode_sparse(x, sparsifier)
    x = crosscoder.scale_inputs(x)
    scaled, kept_by = sparsifier.scaled_entries(code), sparsifier.kept_by(code)
    error = crosscoder.streams.error(x, crosscoder.decode_sparse(code, kept_by), crosscoder.d_model)
    order = torch.argsort(code.latents, stable=True)
    latents, values = code.latents[order], code.values[order]
    return Block(
        x=x,
        error=error,
        **facts._asdict(),
        tokens=code.tokens[order],
        latents=latents,
        values=values,
        scaled=scaled[order],
        kept=torch.stack(kept_by)[:, order],
    )


def row_sums(block: Block, dense: Tensor, ours: Tensor | slice) -> Iterator[tuple[Tensor, Tensor]]:
    """`sum_i f_ij dense_i` for the latents that fire in some entries of the block, a piece at a time.

    `dense: [token, width]`; `ours` chooses entries. Yields (latent ids [row], sums [row, width]). An inner product of a
    sum with `v_j` equals the sum of the inner products of all active entries with `v_j`, at a fraction of the memory
    traffic.
    """
    tokens, values = block.tokens[ours], block.values[ours]
    latents, counts = torch.unique_consecutive(block.latents[ours], return_counts=True)
    starts = counts.cumsum(0) - counts
    at_once = max(1, scratch_bytes(dense.device, ROW_SUM_BYTES) // (dense.shape[1] * dense.element_size()))
    edges = [*starts[::at_once].tolist(), len(tokens)]
    for i, piece in enumerate(latents.split(at_once)):
        entries, own = slice(edges[i], edges[i + 1]), starts[i * at_once : i * at_once + len(piece)]
        yield piece, bag_sums(tokens[entries], dense, own - edges[i], values[entries])

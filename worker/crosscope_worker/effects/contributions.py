"""What active latents write into the stream of a model at the tokens of a text (math §9).

Work and memory go with active entries, not with the size of the dictionary. Knows no figures.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from crosscope_proto.roles import BASE, CHAT
from crosscope_worker.dictionary.sparse import SparseCode, decode_entries, entry_products
from crosscope_worker.effects.subject import Reading

CODE_BYTES = 256 << 20
"""Size of the dense code that is held at once."""


class _Part(NamedTuple):
    """Entries of a code and the decoder rows that they write."""

    code: SparseCode
    """Its `latents` are indices into `rows`."""
    rows: Tensor
    """[active, d_model] float32, in a model's own scale."""

    def of_entries(self, entries: Tensor) -> Tensor:
        """What some entries write, [entry, d_model]."""
        return self.code.values[entries, None] * self.rows[self.code.latents[entries]]


class Contributions(NamedTuple):
    """Contributions of the latents that fire to one model's stream.

    In chat a contribution is `f D^chat`; in base it is `f D^base - f D^chat`, each with the code that the model keeps.
    """

    latents: Tensor
    """[active] int64: ids of the latents that fire, ascending."""
    tokens: Tensor
    """[entry] int64, ascending."""
    indices: Tensor
    """[entry] int64: indices into `latents`."""
    scaled: Tensor
    """[entry] float32: scaled activations."""
    num_tokens: int
    own: _Part
    other: _Part | None
    """What is subtracted; None in chat."""

    def products(self, gradient: Tensor) -> Tensor:
        """Products of the contributions and `gradient: [pos, d_model]`, [entry]."""
        found = self.own.code.values * entry_products(self.own.code, gradient, self.own.rows)
        if self.other is None:
            return found
        return found - self.other.code.values * entry_products(self.other.code, gradient, self.other.rows)

    def all(self) -> Tensor:
        """The contributions of all latents together, [pos, d_model]."""
        found = decode_entries(self.own.code, self.own.rows)
        return found if self.other is None else found - decode_entries(self.other.code, self.other.rows)

    def first_tokens(self) -> Tensor:
        """The first token on which each latent fires, [active] int64."""
        found = torch.full_like(self.latents, self.num_tokens)
        return found.scatter_reduce(0, self.indices, self.tokens, "amin")

    def each(self, chosen: Tensor, start: int) -> Tensor:
        """The contributions of the latents at the indices `chosen: [any]`, [any, pos - start, d_model].

        None of them may fire before the token `start`.
        """
        slots = torch.full_like(self.latents, -1)
        slots[chosen] = torch.arange(len(chosen), device=chosen.device)
        slots = slots[self.indices]
        entries = (slots >= 0).nonzero()[:, 0]
        written = self.own.of_entries(entries)
        if self.other is not None:
            written = written - self.other.of_entries(entries)
        found = written.new_zeros(len(chosen), self.num_tokens - start, written.shape[1])
        found[slots[entries], self.tokens[entries] - start] = written
        return found


def contributions(reading: Reading, code: SparseCode, model: int) -> Contributions:
    """The contributions of the entries of a raw sparse code to the stream of `model`."""
    latents, indices = torch.unique(code.latents, return_inverse=True)
    kept = reading.sparsifier.kept_by(code)

    def part(each: int) -> _Part:
        rows = reading.crosscoder.decoder(each)[latents] / reading.crosscoder.input_scale[each]
        return _Part(code._replace(latents=indices, values=code.values * kept[each]), rows)

    other = part(CHAT) if model == BASE else None
    scaled = reading.sparsifier.scaled_entries(code)
    return Contributions(latents, code.tokens, indices, scaled, code.num_tokens, part(model), other)


def code_of(reading: Reading, x: Tensor) -> SparseCode:
    """The sparse code of `x: [token, both]`, dense in pieces of CODE_BYTES only."""
    rows = max(1, CODE_BYTES // (4 * reading.crosscoder.num_latents))
    with reading.products():
        pieces = [reading.crosscoder.encode_sparse(piece, reading.sparsifier) for piece in x.split(rows)]
    tokens = torch.cat([piece.tokens + start for piece, start in zip(pieces, range(0, len(x), rows), strict=True)])
    latents, values = (
        torch.cat(column) for column in zip(*((each.latents, each.values) for each in pieces), strict=True)
    )
    return SparseCode(tokens, latents, values, len(x))


def only_at(code: SparseCode, tokens: Tensor) -> SparseCode:
    """The entries of a code at the tokens where `tokens: [token]` bool is true."""
    kept = tokens[code.tokens]
    return SparseCode(code.tokens[kept], code.latents[kept], code.values[kept], code.num_tokens)

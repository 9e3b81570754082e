"""Which activations a dictionary reads and reconstructs: both models', their difference, or one model's (math §2).

Axis `both`: the models' residual streams side by side, base's `d_model` first. A dictionary has columns of its own
(`width` of them); an artefact has all of `both`. This module converts between them. Knows no formula of a code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crosscope_proto.dictionaries import Reads
from crosscope_proto.roles import BASE, CHAT, MODEL_NAMES

Widths = tuple[int, ...]
"""Widths of the parts of a dictionary's own columns: base's and chat's, or one."""


def model_slice(model: int, d_model: Widths) -> slice:
    """Where a model's residual stream lies on the axis `both`."""
    return slice(0, d_model[BASE]) if model == BASE else slice(d_model[BASE], None)


@dataclass(frozen=True)
class Streams:
    """Two models, each read and reconstructed as it is; subclasses are the other cases."""

    name: Reads = "both"
    """The name in manifests and recipes."""
    words: str = "both models"
    """What it reads, in words for people."""
    reconstructs: tuple[int, ...] = (BASE, CHAT)
    """The models whose own activations it reconstructs; none, of a difference."""
    figures: tuple[tuple[int, str], ...] = tuple(enumerate(MODEL_NAMES))
    """The parts of `both` that hold a reconstruction, and the names of their figures (`fve_…`)."""

    is_difference: ClassVar[bool] = False
    """Whether what it writes is chat less base."""
    can_vanish: ClassVar[bool] = False
    """Whether what it reads can be zero everywhere though neither model's activations are."""
    vanished: ClassVar[str] = "the activations of a model are zero everywhere; is the layer right?"
    """The message if what it reads is zero everywhere."""

    @property
    def compares_rows(self) -> bool:
        """Whether latents have a row for each model, so that relative norms mean something."""
        return len(self.reconstructs) == 2

    @property
    def patches(self) -> bool:
        """Whether chat's reconstruction less base's is known, which the causal patch needs."""
        return self.compares_rows or self.is_difference

    @property
    def is_single(self) -> bool:
        """Whether it is a sparse autoencoder of one stream."""
        return len(self.figures) == 1

    def columns(self, d_model: tuple[int, int]) -> slice:
        """Where on `both` it writes."""
        return slice(0, sum(d_model))

    def widths(self, d_model: tuple[int, int]) -> Widths:
        """Widths of its own columns."""
        return d_model

    def parts(self, x: Tensor, d_model: tuple[int, int]) -> Sequence[Tensor]:
        """`x: [batch, both]` as what it reads, a tensor `[batch, width of the part]` for each part."""
        return x.split(d_model, dim=1)

    def read(self, x: Tensor, d_model: tuple[int, int]) -> Tensor:
        """`x: [batch, both]` in its own columns, [batch, width]."""
        return x

    def scales(self, factors: Sequence[float]) -> tuple[float, float]:
        """The models' input scales (base, chat) that scale each part of what it reads by its factor."""
        base, chat = factors
        return base, chat

    def place_encoder(self, rows: Tensor) -> Tensor:
        """Encoder rows [latent, width] as an artefact has them, [latent, both]."""
        return rows

    def place_decoder(self, rows: Tensor) -> Tensor:
        """Decoder rows or a bias, [..., width], as an artefact has them, [..., both]."""
        return rows

    def target(self, x: Tensor, d_model: tuple[int, int]) -> Tensor:
        """What it reconstructs of `x: [batch, both]`, [batch, both]; only the parts that `figures` names count."""
        return x

    def error(self, x: Tensor, x_hat: Tensor, d_model: tuple[int, int]) -> Tensor:
        """Its target less `x_hat: [batch, both]`; NaN in a part that it does not write."""
        error = self.target(x, d_model) - x_hat
        for model in {BASE, CHAT} - dict(self.figures).keys():
            error[:, model_slice(model, d_model)] = torch.nan
        return error


@dataclass(frozen=True)
class _Difference(Streams):
    """Chat less base, written in chat's place: the encoder reads base with the opposite sign."""

    is_difference: ClassVar[bool] = True
    can_vanish: ClassVar[bool] = True
    vanished: ClassVar[str] = "the models' activations do not differ; a dictionary of differences has nothing to learn"

    def columns(self, d_model: tuple[int, int]) -> slice:
        return model_slice(CHAT, d_model)

    def widths(self, d_model: tuple[int, int]) -> Widths:
        return d_model[CHAT:]

    def parts(self, x: Tensor, d_model: tuple[int, int]) -> Sequence[Tensor]:
        return (self.read(x, d_model),)

    def read(self, x: Tensor, d_model: tuple[int, int]) -> Tensor:
        return x[:, d_model[BASE] :] - x[:, : d_model[BASE]]

    def scales(self, factors: Sequence[float]) -> tuple[float, float]:
        return factors[0], factors[0]

    def place_encoder(self, rows: Tensor) -> Tensor:
        return torch.cat([-rows, rows], 1)

    def place_decoder(self, rows: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(rows), rows], -1)

    def target(self, x: Tensor, d_model: tuple[int, int]) -> Tensor:
        return torch.cat([x[:, : d_model[BASE]], self.read(x, d_model)], dim=1)


@dataclass(frozen=True)
class _OneModel(Streams):
    """One model alone; zeros stand in the other's place, which is as wide."""

    @property
    def model(self) -> int:
        """The model that is read."""
        return self.reconstructs[0]

    def columns(self, d_model: tuple[int, int]) -> slice:
        return model_slice(self.model, d_model)

    def widths(self, d_model: tuple[int, int]) -> Widths:
        return (d_model[self.model],)

    def parts(self, x: Tensor, d_model: tuple[int, int]) -> Sequence[Tensor]:
        return (self.read(x, d_model),)

    def read(self, x: Tensor, d_model: tuple[int, int]) -> Tensor:
        return x[:, self.columns(d_model)]

    def scales(self, factors: Sequence[float]) -> tuple[float, float]:
        return (factors[0], 1.0) if self.model == BASE else (1.0, factors[0])

    def place_encoder(self, rows: Tensor) -> Tensor:
        return self.place_decoder(rows)

    def place_decoder(self, rows: Tensor) -> Tensor:
        nothing = torch.zeros_like(rows)
        return torch.cat([rows, nothing] if self.model == BASE else [nothing, rows], -1)


BOTH = Streams()
DIFFERENCE = _Difference("difference", "the difference, chat less base", (), ((CHAT, "difference"),))
STREAMS: Mapping[str, Streams] = {
    each.name: each
    for each in (
        BOTH,
        DIFFERENCE,
        _OneModel("base", "base alone", (BASE,), ((BASE, "base"),)),
        _OneModel("chat", "chat alone", (CHAT,), ((CHAT, "chat"),)),
    )
}
"""Streams by name."""

"""A latent's statistics: as a record, as a table row, as text and as HTML. Knows nothing about gRPC."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crosscope import _html, _tables
from crosscope._columns import scalar_columns, value_of
from crosscope._names import latent_name
from crosscope._public import public
from crosscope._tables import number, printable, visible
from crosscope._types import CoActive, Estimate, LatentScaling, Neighbour
from crosscope_proto.artefacts import LatentClass
from crosscope_proto.roles import TokenRole

LATENT_HEADERS = ("id", "class", "rel_norm", "nu_err", "nu_rec", "uselessness", "frequency", "max", "name")


@public
@dataclass(frozen=True)
class LatentStatistics:
    """One latent's statistics. Activations are scaled (math §1)."""

    crosscoder: str
    version_id: str
    id: int
    latent_class: LatentClass
    """By relative norm (math §6): read it beside nu_err, nu_rec and num_active."""
    part: str
    """Part of the dictionary that it belongs to, for instance "delta"; empty in a dictionary without parts."""
    norm_base: float
    norm_chat: float
    rel_norm: float
    """Relative norm, 0 base only to 1 chat only."""
    cosine: float
    num_active: int
    frequency: Estimate
    mean: Estimate
    max: float
    chat_direction: LatentScaling
    """Along the chat model's decoder row: the published choice."""
    base_direction: LatentScaling
    """Along the base model's decoder row."""
    beta_ratio: Estimate
    """Activation coefficient of base over that of chat; difference dictionaries are read by it (math §2)."""
    base_uselessness: float | None
    base_uselessness_ls: float | None
    base_uselessness_single: float | None
    role_shares: tuple[float, ...]
    """Share of activation mass, indexed by TokenRole."""
    dataset_shares: tuple[float, ...]
    """Share of activation mass, in the order of `CrosscoderInfo.datasets`."""
    template_share: float
    repeat_share: float | None
    """Share of its active tokens that repeat an earlier text; None if it never fired or this was not measured."""
    histogram: tuple[int, ...]
    """Active tokens, in the bins of `CrosscoderInfo.histogram_edges`."""
    top_tokens: tuple[str, ...]
    logit_tokens_base: tuple[str, ...]
    logit_tokens_chat: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]
    coactive: tuple[CoActive, ...]
    """Latents that fire on the same tokens most."""
    more: Mapping[str, float]
    """The columns of numbers that have no field of their own, by name; undefined values are left out."""
    peak_context: tuple[str, ...]
    """The text before the peak of its strongest example, the peak, and the text behind it; empty where it never fired,
    and in versions that were published before this was kept."""
    label: str
    """A person's label, else a program's; empty: it has none."""
    is_starred: bool
    """Whether somebody has given it a star."""

    @property
    def name(self) -> str:
        """What it is called: its label, else its strongest peak in its text, as in "I **cannot** help"."""
        return latent_name(self.label, self.peak_context, self.top_tokens)

    @property
    def nu_err(self) -> float:
        """Ratio of the error coefficients along the chat direction; NaN where undefined."""
        return self.chat_direction.nu_err.value

    @property
    def nu_rec(self) -> float:
        """Ratio of the reconstruction coefficients along the chat direction; NaN where undefined."""
        return self.chat_direction.nu_rec.value

    def role_share(self, role: TokenRole) -> float:
        """Share of activation mass on one role."""
        return self.role_shares[role] if role < len(self.role_shares) else 0.0

    def to_row(self) -> dict[str, Any]:
        """Its values in all columns with one value a latent, by the column's name; and `top_tokens`."""
        return {name: value_of(self, name) for name in scalar_columns()} | {"top_tokens": list(self.top_tokens)}

    def __str__(self) -> str:
        return _tables.card(f"latent {self.id} of {self.crosscoder}", self._facts())

    def _repr_html_(self) -> str:
        return _html.page(_html.facts(f"latent {self.id} of {self.crosscoder}", self._facts()))

    def _facts(self) -> list[tuple[str, str]]:
        norms = f"base {number(self.norm_base)}, chat {number(self.norm_chat)}, cosine {number(self.cosine)}"
        return [
            ("name", ("★ " if self.is_starred else "") + self.name),
            ("class", f"{self.latent_class} (relative norm {number(self.rel_norm)})"),
            *([("part", self.part)] if self.part else []),
            ("norms", norms),
            ("nu_err", str(self.chat_direction.nu_err)),
            ("nu_rec", str(self.chat_direction.nu_rec)),
            ("beta_ratio", str(self.beta_ratio)),
            ("base uselessness", number(self.base_uselessness)),
            ("active tokens", f"{self.num_active} (frequency {self.frequency})"),
            ("activation", f"mean {self.mean}, max {number(self.max)}"),
            ("template share", number(self.template_share)),
            ("repeats", f"{number(self.repeat_share)} of its active tokens repeat an earlier text"),
            ("top tokens", " ".join(map(visible, self.top_tokens))),
            ("base raises", " ".join(map(visible, self.logit_tokens_base))),
            ("chat raises", " ".join(map(visible, self.logit_tokens_chat))),
            ("nearest", ", ".join(f"{n.latent} ({number(n.cosine)})" for n in self.neighbours)),
            ("fires with", ", ".join(f"{other.latent} ({number(other.index)})" for other in self.coactive)),
        ]


def latent_cells(latent: LatentStatistics) -> tuple[str, ...]:
    """The cells of one latent under LATENT_HEADERS."""
    return (
        str(latent.id),
        latent.latent_class,
        number(latent.rel_norm),
        number(latent.nu_err),
        number(latent.nu_rec),
        number(latent.base_uselessness),
        number(latent.frequency.value),
        number(latent.max),
        printable(("★ " if latent.is_starred else "") + latent.name),
    )


def latent_table(shown: Sequence[LatentStatistics], total: int, remarks: Sequence[str]) -> str:
    """A table with a row for each latent, the number of those that are not shown, and remarks."""
    if not shown:
        return "\n".join(["no latents", *remarks])
    table = _tables.aligned(LATENT_HEADERS, map(latent_cells, shown))
    return "\n".join([_tables.with_rest(table, len(shown), total), *remarks])


def latent_html(shown: Sequence[LatentStatistics], total: int, remarks: Sequence[str]) -> str:
    """`latent_table` as HTML, for a notebook."""
    rest = [f"… {total - len(shown)} more"] if total > len(shown) else []
    table = _html.table(LATENT_HEADERS, map(latent_cells, shown)) if shown else "no latents"
    return _html.page(table + _html.remarks([*rest, *remarks]))

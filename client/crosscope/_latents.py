"""Latents and their examples, as people and notebooks see them. Knows nothing about gRPC."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, overload

from crosscope import _html, _tables
from crosscope._types import CoActive, Estimate, LatentScaling, Neighbour, Tokens
from crosscope_proto.artefacts import ExampleGroup, LatentClass
from crosscope_proto.roles import TokenRole

if TYPE_CHECKING:
    import pandas as pd

    from crosscope._crosscoder import Crosscoder


@dataclass(frozen=True)
class Example:
    """One text on which a latent fires, or the window of it that was asked for."""

    sequence_id: int
    dataset: str
    group: ExampleGroup
    quantile: int
    """Band of the sequence maximum, 0 the lowest; 0 in group top."""
    rank: int
    tokens: Tokens
    token_start: int
    """Position of the first token in the whole text."""
    num_tokens: int
    """Tokens of the whole text."""
    positions: tuple[int, ...]
    """Tokens with an activation, indices into `tokens`."""
    activations: tuple[float, ...]
    """Their scaled activations."""
    max: float
    """Largest activation in the whole text."""
    peak: int
    """Index of the largest activation in `tokens`."""
    repeats: int = 0
    """Further texts that it stands for: their tokens around the peak are the same."""

    def values(self) -> list[float]:
        """The scaled activation of every token, 0 where the latent is silent."""
        values = [0.0] * len(self.tokens)
        for position, activation in zip(self.positions, self.activations, strict=True):
            values[position] = activation
        return values

    def __str__(self) -> str:
        return _tables.example_line(self)

    def _repr_html_(self) -> str:
        return _html.page(_html.example(self))


class ExampleList(list[Example]):
    """Examples, strongest first; quantile groups after the top ones, highest band first."""

    def __str__(self) -> str:
        return "\n".join(str(example) for example in self) or "no examples"

    def _repr_html_(self) -> str:
        return _html.page(_html.examples(self))


@dataclass(frozen=True)
class Latent:
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
    """Activation coefficient of base over that of chat, by which difference dictionaries are read (math §2)."""
    base_uselessness: float | None
    base_uselessness_ls: float | None
    base_uselessness_single: float | None
    role_shares: tuple[float, ...]
    """Share of activation mass, indexed by TokenRole."""
    dataset_shares: tuple[float, ...]
    """Share of activation mass, in the order of `CrosscoderInfo.datasets`."""
    template_share: float
    repeat_share: float | None
    """Share of its active tokens that repeat an earlier text; None where it never fired or was not measured."""
    histogram: tuple[int, ...]
    """Active tokens, in the bins of `CrosscoderInfo.histogram_edges`."""
    top_tokens: tuple[str, ...]
    logit_tokens_base: tuple[str, ...]
    logit_tokens_chat: tuple[str, ...]
    neighbours: tuple[Neighbour, ...]
    coactive: tuple[CoActive, ...]
    """Latents that fire on the same tokens most."""
    more: Mapping[str, float]
    """Columns of numbers that have no field of their own, by name; those that are undefined are left out."""
    source: "Crosscoder" = field(repr=False, compare=False)
    """The handle that it came from."""

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

    def examples(
        self,
        limit: int = 10,
        group: ExampleGroup | str | None = None,
        dataset: str | None = None,
        context: int | None = None,
    ) -> ExampleList:
        """Texts on which it fires, strongest first.

        `context` is tokens shown on each side of the peak, None the whole text.
        """
        return self.source.examples(self.id, limit=limit, group=group, dataset=dataset, context=context)

    def to_row(self) -> dict[str, object]:
        """Its scalars under the names of the table's columns, which `where` and `order_by` take."""
        return _tables.latent_row(self)

    def __str__(self) -> str:
        return _tables.latent_card(self)

    def _repr_html_(self) -> str:
        return _html.page(_html.latent(self))


@dataclass(frozen=True)
class LatentPage:
    """A page of a listing."""

    latents: list[Latent]
    next_token: str
    """Empty on the last page."""
    num_matching: int
    num_undefined: int
    notes: tuple[str, ...]


PageReader = Callable[[str, int], LatentPage]
"""(page token, page size) to a page."""


class LatentList(Sequence[Latent]):
    """Latents of one listing. Pages are fetched when they are reached, up to the limit; safe to share among threads."""

    num_matching: int
    """Latents that meet the conditions, whatever the limit."""
    num_undefined: int
    """Of these, the latents whose value of `order_by` is undefined; they come last."""
    notes: tuple[str, ...]
    """What a reader must know, for instance that a condition's column is undefined for every latent."""

    def __init__(self, read_page: PageReader, limit: int | None, page_size: int) -> None:
        self._read_page = read_page
        self._page_size = page_size
        self._lock = threading.Lock()
        first = page_size if limit is None else min(limit, page_size)
        page = read_page("", max(first, 1))
        self._fetched, self._next_token, self.num_matching = page.latents, page.next_token, page.num_matching
        self.num_undefined, self.notes = page.num_undefined, page.notes
        self._length = self.num_matching if limit is None else min(limit, self.num_matching)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Latent: ...
    @overload
    def __getitem__(self, index: slice) -> list[Latent]: ...
    def __getitem__(self, index: int | slice) -> Latent | list[Latent]:
        if isinstance(index, slice):
            wanted = range(self._length)[index]
            self._fetch(max(wanted, default=-1) + 1)
            return self._fetched[: self._length][index]
        position = index + self._length if index < 0 else index
        if 0 <= position < self._length:
            self._fetch(position + 1)
        if not 0 <= position < self._length:
            raise IndexError(f"index {index} is outside the {self._length} latents of this list")
        return self._fetched[position]

    def _fetch(self, count: int) -> None:
        with self._lock:
            while len(self._fetched) < count and self._next_token:
                page = self._read_page(self._next_token, self._page_size)
                self._next_token = page.next_token
                self._fetched += page.latents
            if len(self._fetched) < count:
                self._length = len(self._fetched)

    def to_pandas(self) -> "pd.DataFrame":
        """A row a latent, indexed by id; needs pandas."""
        import pandas as pd

        return pd.DataFrame([latent.to_row() for latent in self]).set_index("id") if self else pd.DataFrame()

    @property
    def remarks(self) -> tuple[str, ...]:
        """`notes`, and how many latents have no value of the order."""
        without = f"{self.num_undefined} of {self.num_matching} latents have no value of this order; they come last"
        return (*self.notes, *([without] if self.num_undefined else []))

    def __str__(self) -> str:
        return "\n".join([_tables.latent_table(self), *self.remarks])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _html.page(_html.latent_table(self) + _html.remarks(self.remarks))
